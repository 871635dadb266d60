"""A bounded folder of verified copies of remote files, shared by the processes of a machine.

A copy is named by its sha256. Whoever reads one holds a shared lock on it, and only unlocked ones
are evicted, the least recently opened first; an evicted file that is still mapped stays readable.
Locks end with their process, however it ends.

``SHA``        a whole copy
``.SHA.part``  a download at work
``.SHA.claim`` locked by who downloads; as long (sparsely) as the room that the copy will take
``.lock``      held while room is made
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_shards.settings import InputError
from data_shards.storage.remote import CacheSettings, Count, RemoteFile, download, ignore

_POLL_SECONDS = 0.05


class Cache:
    """The cache in the folder of `settings`; `count` is called with its events."""

    def __init__(self, settings: CacheSettings, count: Count = ignore) -> None:
        self.settings, self._count = settings, count
        self._folder = settings.folder / "shards"
        self._folder.mkdir(parents=True, exist_ok=True)

    def open(self, remote: RemoteFile, roomed: Callable[[], None] = lambda: None) -> BinaryIO:
        """The verified copy of `remote`, fetched if need be; it stays until `release`d.

        `roomed` is called as soon as it has its room, before it is fetched. Raises InputError when
        it cannot be fetched, or there is no room for it.
        """
        path, fetched = self._folder / remote.sha256, False
        # again: another process may evict the copy between its arrival and our lock on it
        while (file := _shared(path)) is None:
            fetched |= self._fetch(remote, path, roomed)
        os.utime(file.fileno())  # eviction goes by the time of last use
        self._count("miss" if fetched else "hit", 1)
        return file

    def _fetch(self, remote: RemoteFile, path: Path, roomed: Callable[[], None]) -> bool:
        """Downloads `remote` to `path`, unless another process just has; returns whether it did."""
        part, claim = (path.with_name(f".{path.name}.{kind}") for kind in ("part", "claim"))
        with claim.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # whoever held the lock before may have fetched the copy, and deleted this claim
            if not _still(file, claim) or path.exists():
                return False
            try:
                self._reserve(file, remote)
                roomed()
                download(remote, part, self.settings, self._count)
                part.rename(path)
            finally:
                part.unlink(missing_ok=True)
                claim.unlink()
        return True

    def _reserve(self, claim: BinaryIO, remote: RemoteFile) -> None:
        """Makes room for `remote` by evicting unlocked copies. Raises InputError if it cannot."""
        begun = time.monotonic()
        while True:
            with self._alone():
                room = self.settings.bytes - remote.bytes - self._used()
                for path in sorted(self._folder.glob("[!.]*"), key=_age) if room < 0 else ():
                    room += self._evict(path) if room < 0 else 0
                if room >= 0:
                    os.truncate(claim.fileno(), remote.bytes)
                    return
            if remote.bytes > self.settings.bytes or _passed(begun) > self.settings.patience:
                raise InputError(
                    f"no room for {remote.path} ({remote.bytes:,} bytes) in {self._folder}: all of "
                    f"data.cache.bytes = {self.settings.bytes:,} is in use; raise it, or lower "
                    "data.order.window"
                )
            time.sleep(_POLL_SECONDS)

    def _used(self) -> int:
        """Bytes of copies and of claims. Deletes claims of dead processes, which hold no lock."""
        for claim in self._folder.glob(".*.claim"):
            with _attempt(claim) as ours:
                if ours:
                    claim.with_suffix(".part").unlink(missing_ok=True)
                    claim.unlink(missing_ok=True)
        # claims first: a download that ends meanwhile is then counted twice, and never not at all
        claimed = sum(_size(path) for path in self._folder.glob(".*.claim"))
        return claimed + sum(_size(path) for path in self._folder.glob("[!.]*"))

    def _evict(self, path: Path) -> int:
        """Deletes a copy, unless it is locked; returns the bytes that this frees."""
        with _attempt(path) as ours:
            if not ours:
                return 0
            size = _size(path)
            path.unlink()
        self._count("evicted", 1)
        return size

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / ".lock").open("w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def release(file: BinaryIO) -> None:
    """Gives up a copy that `Cache.open` returned."""
    os.utime(file.fileno())
    fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def _shared(path: Path) -> BinaryIO | None:
    """`path` opened and locked against eviction, or None if it is not there."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if _still(file, path):
        return file
    file.close()
    return None


def _still(file: BinaryIO, path: Path) -> bool:
    """Whether `path` is the opened `file`: it may have been deleted before it was locked."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def _attempt(path: Path) -> Iterator[bool]:
    """Tries to lock `path` exclusively, without waiting; yields whether that succeeded."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield _still(file, path)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _passed(begun: float) -> float:
    return time.monotonic() - begun
