"""Fetches files from remote file systems (fsspec), with retries and verification."""

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import fsspec
from fsspec.callbacks import Callback
from pydantic import Field, field_validator

from data_shards.files import fingerprint, sha256, write_atomically
from data_shards.settings import Bytes, InputError, Settings
from data_shards.storage.manifest import MANIFEST_BYTES, parse_manifest
from untrusted.files import read_bytes
from untrusted.names import sha256_text
from untrusted.text import holds_secret

Event = Literal["hit", "miss", "evicted", "retry", "mismatch", "downloaded"]
"""The events that a cache counts; `downloaded` in bytes."""
Count = Callable[[Event, int], None]
_LONGEST_WAIT = 30.0
T = TypeVar("T")


class CacheSettings(Settings):
    """Where copies of a remote dataset's shards are kept."""

    folder: Path = Field(
        default_factory=lambda: Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "perennial"),
        validate_default=True,
    )
    """On a local disk; all processes and runs of a machine share it."""
    bytes: Bytes = Field(default=20_000_000_000, ge=1)
    """Most that shards in the folder take: 20GB, or a number of bytes."""
    attempts: int = Field(default=6, ge=1)
    """Tries to fetch a file before the run stops with an error."""
    wait: float = Field(default=0.5, ge=0)
    """Seconds before the second try; twice as many before each further one, at most 30."""
    patience: float = Field(default=120.0, gt=0)
    """Seconds to wait for other processes to give up shards when the folder is full."""
    parallel: int = Field(default=4, ge=1)
    """Shards that a worker fetches ahead at a time."""

    @field_validator("folder")
    @classmethod
    def _from_anywhere(cls, folder: Path) -> Path:
        """Makes the path absolute: workers run in other working directories."""
        return folder.expanduser().absolute()


@dataclass(frozen=True)
class RemoteFile:
    """A file on a file system of fsspec, with its expected size and hash."""

    system: Any
    """The fsspec file system."""
    path: str
    """Its path there."""
    bytes: int
    """Its size."""
    sha256: str
    """Of its content, in hexadecimal. It is the copy's file name in the cache, so it is checked to
    be a digest and not a path."""

    def __post_init__(self) -> None:
        sha256_text(self.sha256)


class _Most(Callback):
    """A progress callback that raises OSError once more bytes than declared have arrived.

    A server could otherwise fill the disk before the size is compared.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        if self.value > self._most:
            raise OSError(f"more than its {self._most:,} bytes come")


def ignore(event: Event, amount: int) -> None:
    """A `Count` that does nothing."""


_REMEDY = "check it and the connection, and run again, or raise data.cache.attempts"


def download(
    remote: RemoteFile,
    path: Path,
    settings: CacheSettings,
    count: Count = ignore,
    remedy: str = _REMEDY,
) -> None:
    """Fetches `remote` to `path` and verifies it, with the retries of `settings`.

    Raises InputError naming the file, what was wrong, and the `remedy`.
    """

    def fetch() -> None:
        remote.system.get_file(remote.path, str(path), callback=_Most(remote.bytes))
        found = path.stat().st_size
        count("downloaded", found)
        if found != remote.bytes or sha256(path) != remote.sha256:
            count("mismatch", 1)
            raise OSError(f"its {found:,} of {remote.bytes:,} bytes do not match its sha256")

    try:
        retried(
            act=fetch,
            settings=settings,
            failed=f"{remote.path} could not be fetched",
            remedy=remedy,
            count=count,
        )
    except FileNotFoundError as error:
        raise InputError(f"{remote.path} is missing: restore it and run again") from error


def retried(
    act: Callable[[], T], settings: CacheSettings, failed: str, remedy: str, count: Count = ignore
) -> T:
    """Calls `act` until it succeeds, as often as `settings` allow, and returns its result.

    A FileNotFoundError is passed on at once. Raises InputError with `failed`, the reason and the
    `remedy`; at once where access is denied.
    """
    why = ""
    for attempt in range(settings.attempts):
        if attempt:
            count("retry", 1)
            time.sleep(min(settings.wait * 2 ** (attempt - 1), _LONGEST_WAIT))
        try:
            return act()
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise InputError(
                f"{failed} (access denied: {error}): check the credentials and their rights"
            ) from error
        except Exception as error:  # each file system's library has errors of its own
            why = f"{type(error).__name__}: {error}"
    raise InputError(f"{failed} in {settings.attempts} attempts ({why}): {remedy}")


def is_remote(location: str | Path) -> bool:
    """Whether a dataset's location is a URL of fsspec.

    Raises InputError for ``pipe:``, which runs commands, and for a URL with a password, which would
    be written to files and shown.
    """
    text = str(location)
    check_no_secret(text)
    if any(part.strip().startswith("pipe:") for part in text.split("::")):
        raise InputError(f"{text}: pipe: URLs run commands and are refused; give a path or a URL")
    return "://" in text and not text.startswith("file://")


def check_no_secret(url: str) -> None:
    """Raises InputError for a URL that contains a password."""
    if holds_secret(url):
        raise InputError(
            f"{url} holds a password, which would be written to files: leave it out, and give it "
            "in the environment or the file system's own configuration (docs/security.md)"
        )


def normal(location: str | Path) -> str:
    """A dataset's location in the form that is compared and shown.

    Raises InputError as `is_remote` does.
    """
    if is_remote(location):
        return str(location).rstrip("/")
    return str(Path(str(location).removeprefix("file://")))


def anywhere(location: str) -> str:
    """The location in a form that holds in any working directory."""
    return location if is_remote(location) else str(Path(location).resolve())


def file_system(url: str) -> tuple[Any, str]:
    """The file system and path of a URL. Raises InputError when its package is missing."""
    check_no_secret(url)
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url} cannot be read: {error}") from error
    return system, path.rstrip("/")


def fetch_tables(url: str, settings: CacheSettings) -> Path:
    """A local folder with the manifest and the tables of the dataset at `url`, but no shards.

    The manifest is read anew each time, the tables only where they changed. Raises InputError.
    """
    system, root = file_system(url)
    content = _manifest(system, root, url, settings)
    files = parse_manifest(content, f"{url}/manifest.json")["files"]
    tables = {name: facts for name, facts in files.items() if name.endswith(".parquet")}
    if (most := sum(facts["bytes"] for facts in tables.values())) > settings.bytes:
        raise InputError(
            f"{url} has tables of {most:,} bytes, more than data.cache.bytes = {settings.bytes:,}:"
            " raise it"
        )
    wanted = [RemoteFile(system, f"{root}/{n}", f["bytes"], f["sha256"]) for n, f in tables.items()]
    folder = settings.folder / "tables" / fingerprint([url, content.decode()])
    folder.mkdir(parents=True, exist_ok=True)
    for name, remote in zip(tables, wanted, strict=True):
        path = folder / name
        if not path.exists() or sha256(path) != remote.sha256:
            part = path.with_name(f".{name}.{os.getpid()}.part")
            try:
                download(remote, part, settings)
                part.rename(path)
            finally:
                part.unlink(missing_ok=True)
    write_atomically(folder / "manifest.json", content)
    return folder


def _manifest(system: Any, root: str, url: str, settings: CacheSettings) -> bytes:
    part = settings.folder / f".manifest.{os.getpid()}.{secrets.token_hex(4)}.part"
    part.parent.mkdir(parents=True, exist_ok=True)

    def fetch() -> bytes:
        try:
            system.get_file(f"{root}/manifest.json", str(part), callback=_Most(MANIFEST_BYTES))
            return read_bytes(part, MANIFEST_BYTES)
        finally:
            part.unlink(missing_ok=True)

    failed, remedy = f"{url}/manifest.json could not be read", "check the URL and the connection"
    try:
        return retried(fetch, settings, failed, f"{remedy}, and run again")
    except FileNotFoundError as error:
        raise InputError(f"{url} holds no dataset (no manifest.json)") from error


def verify_remote(
    url: str,
    files: Mapping[str, dict[str, Any]],
    settings: CacheSettings,
    progress: Callable[[int], None],
) -> None:
    """Fetches the `files` of the dataset at `url` one after the other and compares each with its
    manifest entry; none is kept. `progress` is called with the bytes done.

    Raises InputError naming the first that is missing or differs.
    """
    system, root = file_system(url)
    part, done = settings.folder / f".verified.{os.getpid()}.part", 0
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        for name, facts in files.items():
            path = f"{root}/{name}"
            remote = RemoteFile(system, path, facts["bytes"], facts["sha256"])
            download(remote, part, settings, remedy="restore it or build the dataset again")
            progress(done := done + facts["bytes"])
    finally:
        part.unlink(missing_ok=True)
