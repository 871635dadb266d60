"""A saved folder, a checkpoint or a model: safetensors, a card, and a manifest of their sha256.

``manifest.json`` is written last, so a folder with one is complete. Nothing is deserialised before
its hash is checked.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load

from data_shards.settings import InputError
from data_shards.storage.kinds import kind_of, no_model
from data_shards.storage.remote import check_no_secret
from untrusted.files import open_regular
from untrusted.json_text import parse_json
from untrusted.names import plain_name, sha256_text
from untrusted.safetensors import intact, read_header

VERSIONS = {"model": 1, "checkpoint": 2, "decision": 1, "consolidated": 1, "generator": 1}
"""The version of each kind of folder; cards without a kind were written before there were two."""
MANIFEST, CARD = "manifest.json", "card.json"
BLOCK = 4 << 20
"""Bytes hashed and written at a time, so that they are still in the cache when written."""
_MOST_TEXT = 1 << 26
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


_REMEDY = "restore it from a copy, or move the folder away and give the command that wrote it again"


class DamagedError(InputError):
    """A checkpoint or model folder is incomplete or was changed."""


def tensors_name(name: str) -> str:
    """The name of the file that holds the tensors `name`."""
    return f"{name}.safetensors"


def encode(tensors: Mapping[str, torch.Tensor]) -> list[memoryview]:
    """A safetensors file as buffers that share the memory of `tensors` (contiguous, on the host).

    The safetensors library would copy everything twice while holding the interpreter's lock, for
    which the training loop would wait.
    """
    header: dict[str, Any] = {}
    buffers, end = [], 0
    # the largest elements first, so that every tensor is aligned
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        buffers.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *buffers]


def encode_json(value: Any) -> list[memoryview]:
    """A JSON file, indented for people, as buffers."""
    return [memoryview((json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())]


def blocks(buffers: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same bytes in pieces of about `BLOCK`: small buffers together, large ones in parts."""
    small = bytearray()
    for buffer in buffers:
        if len(small) + len(buffer) <= BLOCK:
            small += buffer
            continue
        yield memoryview(small)
        small = bytearray()
        for start in range(0, len(buffer), BLOCK):
            yield buffer[start : start + BLOCK]
    yield memoryview(small)


class Folder:
    """A saved folder on any file system, read through its manifest."""

    def __init__(self, files: fsspec.AbstractFileSystem, path: str) -> None:
        self._files, self.path = files, path.rstrip("/")

    @classmethod
    def at(cls, location: str | Path) -> "Folder":
        """The folder at a path or any fsspec URL."""
        return cls(*file_system(location))

    def __str__(self) -> str:
        return self._files.unstrip_protocol(self.path).removeprefix("file://")

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rsplit("/", 1)[-1]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each file, from the manifest. Raises DamagedError if it cannot be read."""
        try:
            with self._open(MANIFEST) as file:
                hashes = parse_json(file.read(_MOST_TEXT))
            if not isinstance(hashes, dict):
                raise ValueError("not a mapping")
            return {plain_name(name): sha256_text(digest) for name, digest in hashes.items()}
        except FileNotFoundError as error:
            raise DamagedError(no_model(str(self))) from error
        except (OSError, ValueError) as error:
            if "://" not in str(self) and kind_of(Path(str(self))) in ("run", "dataset"):
                raise DamagedError(no_model(str(self))) from error
            raise DamagedError(
                f"{self}/{MANIFEST} cannot be read, or is none: {_REMEDY}"
            ) from error

    def _open(self, name: str) -> BinaryIO:
        """Opens a file; on a local disk only a regular file of this folder. Raises OSError."""
        if type(self._files) is LocalFileSystem:
            return open_regular(Path(self.path) / name, Path(self.path))
        file: BinaryIO = self._files.open(f"{self.path}/{name}", "rb")
        return file

    def complete(self) -> bool:
        """Whether it has a manifest, which is written last."""
        return bool(self._files.exists(f"{self.path}/{MANIFEST}"))

    def size(self, name: str) -> int:
        """Bytes of a file. Raises OSError."""
        return int(self._files.size(f"{self.path}/{name}"))

    def damaged(self, name: str) -> bool:
        """Whether a file is missing or differs from its hash."""
        digest = hashlib.sha256()
        try:
            with self._open(name) as file:
                while block := file.read(BLOCK):
                    digest.update(block)
        except OSError:
            return True
        return digest.hexdigest() != self.hashes[name]

    def verify(self) -> None:
        """Compares every file with the manifest. Raises DamagedError naming the first damaged."""
        for name in self.hashes:
            if self.damaged(name):
                raise self._damage(name)

    def read(self, name: str) -> bytes:
        """A file's verified content. Raises DamagedError."""
        if name not in self.hashes:
            raise DamagedError(f"{self} has no {name}: give another folder")
        try:
            with self._open(name) as file:
                content = file.read()
        except OSError as error:
            raise self._damage(name) from error
        # of the bytes that are returned: a second read could find others
        if hashlib.sha256(content).hexdigest() != self.hashes[name]:
            raise self._damage(name)
        return content

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one safetensors file. Raises DamagedError."""
        content = self.read(tensors_name(name))
        try:
            with intact():
                read_header(io.BytesIO(content), len(content))
                return load(content)
        except ValueError as error:
            raise self._damage(tensors_name(name)) from error

    def card(self, kind: str) -> dict[str, Any]:
        """Its card. Raises DamagedError when it is of another version or not of this `kind`."""
        with self.intact(CARD):
            card = parse_json(self.read(CARD))
            version, reads, found = card["version"], VERSIONS[kind], card.get("kind", kind)
            if type(version) is not int or not isinstance(found, str):
                raise ValueError("no version or kind")
        if version != reads:
            raise DamagedError(
                f"{self} has version {version}, this program reads {reads}: use the program that "
                "wrote it, or train anew in another --out"
            )
        if found != kind:
            raise DamagedError(f"{self} is a {found[:40]}, not a {kind}: give another folder")
        return card

    @contextmanager
    def intact(self, name: str) -> Iterator[None]:
        """Turns errors that the content of file `name` causes into a DamagedError."""
        try:
            yield
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise self._damage(name) from error

    def _damage(self, name: str) -> DamagedError:
        return DamagedError(f"{self}/{name} is missing or damaged: {_REMEDY}")


def file_system(location: str | Path) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system and the path on it of a path or URL. Raises InputError."""
    if isinstance(location, Path):  # whatever its name: fsspec would take "a::b" for chained URLs
        return LocalFileSystem(), str(location.absolute())
    check_no_secret(location)
    try:
        files, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot open {location}: {error}") from error
    return files, path
