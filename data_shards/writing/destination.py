"""Where a dataset that is being written ends up: the folder it is written in, or a bucket.

Into a bucket (any file system of fsspec that can be written to) goes each shard as soon as it is
finished, and with it what a later attempt must know, so that any machine can go on::

    URL/.import/NAME   the sha256 and the content of a file of the journal (`journal`)
    URL/manifest.json  written last: without it nothing at URL is a dataset

On this machine there are never more than one shard, a copy read back to be checked, and tables.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data_shards.files import fingerprint, sha256, write_atomically
from data_shards.settings import InputError
from data_shards.storage.remote import CacheSettings, file_system, is_remote, retried

FOLDER = ".import"
_REFUSED, _SOURCE = "refused.jsonl", "source.json"
_JOURNAL = re.compile(r"source\.json|refused\.jsonl|shard-\d{5,}\.parquet")
_DIGEST = hashlib.sha256().digest_size
T = TypeVar("T")
_READ_ONLY = {"http", "https", "data", "github", "zip", "tar"}


class Destination(Protocol):
    """Where the files of a dataset end up that are written in `folder`."""

    name: str
    """Path or URL, for people."""
    folder: Path

    def manifest(self) -> bytes | None:
        """The manifest, if a whole dataset is there."""

    def recall(self) -> None:
        """Puts in `folder` what is remembered of an earlier attempt."""

    def holds(self, name: str, facts: dict[str, Any]) -> bool:
        """Whether a finished file is there as its manifest entry says."""

    def keep(self, name: str, digest: str) -> None:
        """A file of `folder` is finished: puts it there."""

    def remember(self, name: str) -> None:
        """A file of the journal, or the list of the refused, has grown or changed."""

    def forget_journal(self) -> None:
        """The dataset is whole: forgets what was remembered."""

    def leave(self) -> None:
        """Nobody will look into `folder` any more."""


class Folder:
    """A folder of this machine: what is written in it is where it belongs."""

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = str(folder), folder

    def manifest(self) -> bytes | None:
        """Reads it."""
        try:
            return (self.folder / "manifest.json").read_bytes()
        except FileNotFoundError:
            return None

    def recall(self) -> None:
        """It is there."""

    def holds(self, name: str, facts: dict[str, Any]) -> bool:
        """Compares its hash."""
        path = self.folder / name
        return path.exists() and sha256(path) == facts["sha256"]

    def keep(self, name: str, digest: str) -> None:
        """It is there."""

    def remember(self, name: str) -> None:
        """It is there."""

    def forget_journal(self) -> None:
        """Deletes the journal, and what was half written."""
        for part in (*self.folder.glob(".*.part"), *self.folder.glob("*.tar.part")):
            part.unlink()
        shutil.rmtree(self.folder / FOLDER, ignore_errors=True)

    def leave(self) -> None:
        """Stays."""


class Bucket:
    """A folder at a URL of fsspec; `folder` lies in the cache's and is emptied at each start."""

    def __init__(self, url: str, settings: CacheSettings) -> None:
        """Raises InputError for a URL that cannot be written to."""
        self.name, self._settings = url.rstrip("/"), settings
        self._system, self._root = file_system(url)
        protocols = self._system.protocol
        if {protocols} & _READ_ONLY if isinstance(protocols, str) else {*protocols} & _READ_ONLY:
            raise InputError(
                f"{url} can only be read: give the URL of a bucket, such as s3://NAME/FOLDER"
            )
        self.folder = settings.folder / "imports" / fingerprint(self.name)
        self._sizes: dict[str, int] = {}
        self._refused = 0

    def manifest(self) -> bytes | None:
        """Fetches it, unless the journal is there, too: then nobody has said that it came whole.

        Raises InputError when that fails.
        """
        if _SOURCE in self._listed(f"{self._root}/{FOLDER}"):
            return None

        def fetch() -> bytes | None:
            try:
                return self._system.cat_file(f"{self._root}/manifest.json")
            except FileNotFoundError:
                return None

        return self._tried(fetch, f"{self.name}/manifest.json could not be fetched")

    def recall(self) -> None:
        """Fetches the journal and the list of the refused, as far as they came whole.

        Raises InputError when they cannot be fetched.
        """
        for path in (*self.folder.glob("*"), *(self.folder / FOLDER).glob("*")):
            if path.is_file() and path.name != "lock":
                path.unlink()
        self._sizes = self._listed(self._root)
        remembered = self._listed(f"{self._root}/{FOLDER}")
        names = [name for name in remembered if _JOURNAL.fullmatch(name)]
        found = {name: self._opened(name) for name in names if name in (_SOURCE, _REFUSED)}
        if _SOURCE in found and None not in found.values():
            for name in names:
                content = found.get(name) or self._opened(name)
                if content is not None:
                    write_atomically(self._local(name), content)
        self._refused = _length(self._local(_REFUSED))

    def holds(self, name: str, facts: dict[str, Any]) -> bool:
        """Compares its length: it was read back when it was written."""
        return self._sizes.get(name) == facts["bytes"]

    def keep(self, name: str, digest: str) -> None:
        """Uploads the file, compares what is there with it, and deletes it here.

        The list of the refused stays until `leave`: it is shown.
        """
        path = self.folder / name
        self._put(path, name, digest)
        if name != _REFUSED:
            path.unlink()

    def remember(self, name: str) -> None:
        """Uploads the file with its hash before it."""
        path = self._local(name)
        if name == _REFUSED:
            if _length(path) == self._refused:
                return
            self._refused = _length(path)
        content, sealed = path.read_bytes(), self.folder / ".sealed.part"
        sealed.write_bytes(hashlib.sha256(content).digest() + content)
        self._put(sealed, f"{FOLDER}/{name}", sha256(sealed))
        sealed.unlink()

    def forget_journal(self) -> None:
        """Deletes the journal there and here; there first what makes it one."""

        def remove() -> None:
            remembered = f"{self._root}/{FOLDER}"
            if _SOURCE in self._listed(remembered):
                self._system.rm_file(f"{remembered}/{_SOURCE}")
            if self._listed(remembered):
                self._system.rm(remembered, recursive=True)

        self._tried(remove, f"{self.name}/{FOLDER} could not be deleted")
        shutil.rmtree(self.folder / FOLDER, ignore_errors=True)

    def leave(self) -> None:
        """Deletes `folder`."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _local(self, name: str) -> Path:
        return self.folder / name if name == _REFUSED else self.folder / FOLDER / name

    def _listed(self, path: str) -> dict[str, int]:
        """The files at `path` and their sizes."""

        def listing() -> dict[str, int]:
            self._system.invalidate_cache()
            try:
                entries = self._system.ls(path, detail=True)
            except FileNotFoundError:
                return {}
            files = [entry for entry in entries if entry["type"] == "file"]
            return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in files}

        return self._tried(listing, f"{self.name} could not be listed")

    def _opened(self, name: str) -> bytes | None:
        """The content of a remembered file; None when it is not as it was remembered."""

        def fetch() -> bytes:
            return self._system.cat_file(f"{self._root}/{FOLDER}/{name}")

        for _ in range(self._settings.attempts):
            content = self._tried(fetch, f"{self.name}/{FOLDER}/{name} could not be fetched")
            if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
                return content[_DIGEST:]
        return None

    def _put(self, path: Path, name: str, digest: str) -> None:
        """Uploads `path` and reads it back. Raises InputError."""
        target, back = f"{self._root}/{name}", self.folder / ".read-back.part"

        def put() -> None:
            self._system.put_file(str(path), target)
            self._system.get_file(target, str(back))
            if sha256(back) != digest:
                raise OSError("what is there does not match its sha256")

        try:
            self._tried(put, f"{self.name}/{name} could not be written")
        finally:
            back.unlink(missing_ok=True)

    def _tried(self, act: Callable[[], T], failed: str) -> T:
        remedy = "check the URL and the connection, and give the same command again: it goes on"
        try:
            return retried(act, self._settings, failed, remedy)
        except FileNotFoundError as error:
            raise InputError(f"{failed} ({error}): does the bucket exist?") from error


def destination_at(location: str | Path, settings: CacheSettings | None = None) -> Destination:
    """The place of a dataset to be written, by its path or URL. Raises InputError."""
    if is_remote(location):
        return Bucket(str(location), settings or CacheSettings())
    return Folder(Path(str(location).removeprefix("file://")))


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
