"""Stores for saved folders: a local folder, or anything that fsspec writes to.

Both write a folder's files first and its manifest last. On a local disk this happens under a
temporary name that a rename makes the real one; object stores have no rename, so there the manifest
alone makes a folder complete.
"""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data_shards.files import fsync
from trainer.checkpoint.format import MANIFEST, Folder, file_system

_NUMBER = re.compile(r"\d+")


class Store(Protocol):
    """A folder of saved folders. Paths are relative to it; failures are OSError or the store's."""

    poll_seconds: float
    """How often to look for files of other ranks."""

    def part(self, name: str, token: str) -> str:
        """The folder that the attempt `token` to save `name` writes its files to."""

    def begin(self, part: str) -> None:
        """Prepares `part`; every rank calls it, in any order."""

    def write(self, path: str, blocks: Iterable[memoryview]) -> None:
        """Writes a file; it is durable when this returns."""

    def publish(self, part: str, name: str) -> None:
        """Gives a complete `part`, which has its manifest, its final `name`."""

    def replace(self, path: str, content: bytes) -> None:
        """Replaces a small file atomically."""

    def read(self, path: str) -> bytes | None:
        """A small file's content, or None where there is no such file."""

    def saved(self) -> list[int]:
        """The names that are numbers, ascending, whether complete or not."""

    def folder(self, name: str) -> Folder:
        """The saved folder `name`, for reading."""

    def remove(self, path: str) -> None:
        """Deletes a file or folder, if it is there; the store itself for an empty path."""

    def sweep(self, name: str, living: str | None = None) -> None:
        """Deletes remains of attempts to save `name` (a glob), except of tokens with `living`."""


class LocalStore:
    """A local folder, or one that all machines mount."""

    poll_seconds = 0.02

    def __init__(self, root: Path) -> None:
        self._root = root

    def part(self, name: str, token: str) -> str:
        """A hidden sibling of the final folder, so that it can be renamed to it."""
        return f".{name}.{token}.part"

    def begin(self, part: str) -> None:
        """Creates the folder."""
        (self._root / part).mkdir(parents=True, exist_ok=True)

    def write(self, path: str, blocks: Iterable[memoryview]) -> None:
        """Writes the file and flushes it to the disk."""
        descriptor = os.open(self._root / path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for block in blocks:
                while block:  # os.write may write less than it is given
                    block = block[os.write(descriptor, block) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def publish(self, part: str, name: str) -> None:
        """Renames the part, after its files and its directory entries are on the disk."""
        fsync(self._root / part)
        self.remove(name)  # a folder cannot be renamed onto another that is not empty
        (self._root / part).rename(self._root / name)
        fsync(self._root)

    def replace(self, path: str, content: bytes) -> None:
        """Writes a temporary file beside it and renames that."""
        self.write(f".{path}.part", [memoryview(content)])
        (self._root / f".{path}.part").rename(self._root / path)
        fsync(self._root)

    def read(self, path: str) -> bytes | None:
        """Reads the file, None if there is none."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None

    def saved(self) -> list[int]:
        """The numbers among the folder's entries."""
        names = [p.name for p in self._root.iterdir()] if self._root.exists() else []
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def folder(self, name: str) -> Folder:
        """The saved folder, on the local file system."""
        return Folder(LocalFileSystem(), str((self._root / name).absolute()))

    def remove(self, path: str) -> None:
        """Deletes a file, or a folder after renaming it: partly deleted it must not look saved."""
        target = self._root / path
        if target.is_dir():
            hidden = target
            if path and not path.startswith("."):
                hidden = self._root / f".{path}.removed.part"
                shutil.rmtree(hidden, ignore_errors=True)
                target.rename(hidden)
            shutil.rmtree(hidden)
        else:
            target.unlink(missing_ok=True)

    def sweep(self, name: str, living: str | None = None) -> None:
        """Deletes the hidden folders of attempts and of deletions that were cut short."""
        for part in self._root.glob(f".{name}.*.part"):
            if living is None or living not in part.name:
                shutil.rmtree(part, ignore_errors=True)


class RemoteStore:
    """A prefix of any fsspec file system."""

    poll_seconds = 0.5

    def __init__(self, files: fsspec.AbstractFileSystem, root: str) -> None:
        self._files, self._root = files, root.rstrip("/")

    def part(self, name: str, token: str) -> str:
        """The final folder: object stores have no rename."""
        return name

    def begin(self, part: str) -> None:
        """Deletes an earlier attempt's manifest, which would describe other files."""
        self._files.makedirs(f"{self._root}/{part}", exist_ok=True)
        self.remove(f"{part}/{MANIFEST}")

    def write(self, path: str, blocks: Iterable[memoryview]) -> None:
        """Uploads the file; it is durable once closed."""
        with self._files.open(f"{self._root}/{path}", "wb") as file:
            for block in blocks:
                file.write(block)

    def publish(self, part: str, name: str) -> None:
        """Nothing to do: the manifest is there."""

    def replace(self, path: str, content: bytes) -> None:
        """Uploads the file."""
        self._files.pipe_file(f"{self._root}/{path}", content)

    def read(self, path: str) -> bytes | None:
        """Downloads the file, None if there is none."""
        try:
            content: bytes = self._files.cat_file(f"{self._root}/{path}")
        except FileNotFoundError:
            return None
        return content

    def saved(self) -> list[int]:
        """The numbers among the entries, past fsspec's cache: other ranks write here, too."""
        self._files.invalidate_cache()
        try:
            names = [p.rstrip("/").rsplit("/", 1)[-1] for p in self._files.ls(self._root, False)]
        except FileNotFoundError:
            names = []
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def folder(self, name: str) -> Folder:
        """The saved folder, on the store's file system."""
        return Folder(self._files, f"{self._root}/{name}")

    def remove(self, path: str) -> None:
        """Deletes the manifest first: a folder that is partly deleted must not look complete."""
        target = f"{self._root}/{path}".rstrip("/")
        self._files.invalidate_cache()
        for victim in (f"{target}/{MANIFEST}", target):
            if self._files.exists(victim):
                self._files.rm(victim, recursive=True)

    def sweep(self, name: str, living: str | None = None) -> None:
        """Nothing to do: the next attempt at that name overwrites the files."""


def open_store(location: str | Path) -> Store:
    """The store at a path or fsspec URL. Raises InputError for a URL that nothing can open."""
    files, path = file_system(location)
    # not subclasses of LocalFileSystem, which may do something else
    return LocalStore(Path(path)) if type(files) is LocalFileSystem else RemoteStore(files, path)
