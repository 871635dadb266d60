"""The destination of a dataset being written: a local folder, or a bucket.

A bucket is any writable file system of fsspec. Each shard is uploaded as soon as it is finished,
together with the journal that a later attempt needs, so that any machine can resume the import::

    URL/.import/NAME   the sha256 and the content of a file of the journal (`journal`)
    URL/manifest.json  written last: without it nothing at URL is a dataset

This machine never holds more than one shard, a copy read back for comparison, and the tables.
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
    """The place that the files of a dataset, which are written in `folder`, are stored at."""

    name: str
    """Path or URL, for people."""
    folder: Path

    def manifest(self) -> bytes | None:
        """The manifest, if the destination holds a complete dataset."""

    def recall(self) -> None:
        """Restores an earlier attempt's journal and list of refusals to `folder`."""

    def holds(self, name: str, facts: dict[str, Any]) -> bool:
        """Whether a finished file is stored as its manifest entry describes it."""

    def keep(self, name: str, digest: str) -> None:
        """Stores a finished file of `folder`, whose sha256 is `digest`."""

    def remember(self, name: str) -> None:
        """Stores the current state of a journal file, or of the list of refusals."""

    def forget_journal(self) -> None:
        """Deletes the journal: the dataset is complete."""

    def leave(self) -> None:
        """Cleans up `folder`, which is not used any more."""


class Folder:
    """A local folder: files are written where they belong, so there is nothing to store."""

    def __init__(self, folder: Path) -> None:
        self.name, self.folder = str(folder), folder

    def manifest(self) -> bytes | None:
        """The content of manifest.json, None if there is none."""
        try:
            return (self.folder / "manifest.json").read_bytes()
        except FileNotFoundError:
            return None

    def recall(self) -> None:
        """Nothing to do: the journal is in the folder."""

    def holds(self, name: str, facts: dict[str, Any]) -> bool:
        """Whether the file exists and has its hash."""
        path = self.folder / name
        return path.exists() and sha256(path) == facts["sha256"]

    def keep(self, name: str, digest: str) -> None:
        """Nothing to do: the file is in place."""

    def remember(self, name: str) -> None:
        """Nothing to do: the file is in place."""

    def forget_journal(self) -> None:
        """Deletes the journal and partly written files."""
        for part in (*self.folder.glob(".*.part"), *self.folder.glob("*.tar.part")):
            part.unlink()
        shutil.rmtree(self.folder / FOLDER, ignore_errors=True)

    def leave(self) -> None:
        """Nothing to do: the folder is the dataset."""


class Bucket:
    """A folder at a URL of fsspec. `folder` is a local work folder, emptied at each start."""

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
        """The manifest, or None while there is a journal.

        An upload can be stored damaged, and a kill before it was read back would leave it; so the
        manifest does not count until the journal's first file is deleted. Raises InputError when
        fetching fails.
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
        """Fetches the journal and the list of refusals, as far as they are undamaged.

        Raises InputError when fetching fails.
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
        """Whether a file of its length is there; the content was compared after the upload."""
        return self._sizes.get(name) == facts["bytes"]

    def keep(self, name: str, digest: str) -> None:
        """Uploads the file, reads it back for comparison, and deletes the local one.

        The list of refusals stays until `leave`, as it is shown at the end.
        """
        path = self.folder / name
        self._put(path, name, digest)
        if name != _REFUSED:
            path.unlink()

    def remember(self, name: str) -> None:
        """Uploads the file with its sha256 in front, so that a damaged one counts as missing."""
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
        """Deletes the journal remotely and locally; source.json, which makes it one, first."""

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
            # fsspec remembers listings, and another machine may have written since
            self._system.invalidate_cache()
            try:
                entries = self._system.ls(path, detail=True)
            except FileNotFoundError:
                return {}
            files = [entry for entry in entries if entry["type"] == "file"]
            return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in files}

        return self._tried(listing, f"{self.name} could not be listed")

    def _opened(self, name: str) -> bytes | None:
        """The content of a journal file; None when it does not match the sha256 in front of it."""

        def fetch() -> bytes:
            return self._system.cat_file(f"{self._root}/{FOLDER}/{name}")

        for _ in range(self._settings.attempts):
            content = self._tried(fetch, f"{self.name}/{FOLDER}/{name} could not be fetched")
            if hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]:
                return content[_DIGEST:]
        return None

    def _put(self, path: Path, name: str, digest: str) -> None:
        """Uploads `path` and reads it back: not every store or proxy checks what it receives.

        Raises InputError.
        """
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
    """The destination at a path or URL. Raises InputError."""
    if is_remote(location):
        return Bucket(str(location), settings or CacheSettings())
    return Folder(Path(str(location).removeprefix("file://")))


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
