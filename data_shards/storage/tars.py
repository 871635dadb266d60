"""Writes one shard: a WebDataset tar, and the index that DALI's wds2idx would make of it."""

import hashlib
import os
import tarfile
from pathlib import Path
from typing import Any

from data_shards.files import write_atomically
from untrusted.files import no_link

_BLOCK, _RECORD = 512, 10_240


def _template(extension: str) -> tuple[bytes, int]:
    """A member's header with name, size and checksum left blank, and the sum of its bytes."""
    info = tarfile.TarInfo("x." + extension)
    info.mode, info.uname, info.gname = 0o444, "bigdata", "bigdata"  # as webdataset's TarWriter
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[0:100], header[124:136] = bytes(100), bytes(12)
    header[148:156] = b" " * 8  # a checksum is taken with spaces in its own place
    return bytes(header), sum(header)


_TEMPLATES = {extension: _template(extension) for extension in ("cls", "jpg", "json")}


def _header(key: str, extension: str, size: int) -> bytes:
    template, total = _TEMPLATES[extension]
    name, digits = f"{key}.{extension}".encode("ascii"), b"%011o\0" % size
    checksum = b"%06o\0 " % (total + sum(name) + sum(digits))
    return b"".join(
        (name, template[len(name) : 124], digits, template[136:148], checksum, template[156:])
    )


class ShardFile:
    """A tar being written, under the name ``NAME.tar.part`` until it is complete."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes, self.samples = path, 0, 0
        self._part = path.with_suffix(".tar.part")
        self._file = open(self._part, "wb", opener=no_link)  # noqa: SIM115
        self._hash = hashlib.sha256()
        self._index: list[str] = []

    def add(self, key: str, cls: bytes, jpg: bytes, json: bytes) -> int:
        """Appends a sample and returns the offset of its JPEG."""
        chunks: list[bytes] = []
        components, start, offset = [], self.bytes, -1
        for extension, content in (("cls", cls), ("jpg", jpg), ("json", json)):
            size = len(content)
            start += _BLOCK
            if extension == "jpg":
                offset = start
            components.append(f"{extension} {start} {size} {key}.{extension}")
            chunks += (_header(key, extension, size), content, bytes(-size % _BLOCK))
            start += size + -size % _BLOCK
        self._write(b"".join(chunks))
        self._index.append(" ".join(components))
        self.samples += 1
        return offset

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self.bytes += len(content)

    def close(self) -> dict[str, dict[str, Any]]:
        """Completes the tar, puts it and its index in place, and returns their manifest entries."""
        end = 2 * _BLOCK
        self._write(bytes(end + -(self.bytes + end) % _RECORD))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.rename(self.path)
        index = "\n".join([f"v1.2 {self.samples}", *self._index, ""]).encode()
        index_path = self.path.with_suffix(".idx")
        write_atomically(index_path, index)
        return {
            self.path.name: {"bytes": self.bytes, "sha256": self._hash.hexdigest()},
            index_path.name: {"bytes": len(index), "sha256": hashlib.sha256(index).hexdigest()},
        }

    def abandon(self) -> None:
        """Leaves the tar unfinished."""
        self._file.close()
