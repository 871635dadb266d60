"""Reads untrusted tars, compressed or not, forward only, with bounded memory and work."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from data_shards.settings import InputError
from data_shards.sources import MAX_ENCODED_BYTES

_PACKERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lambda path: _Xz(path),
    b"\x28\xb5\x2f\xfd": lambda path: pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"),
}
"""Decompressors by a file's first bytes: the names of compressed tars are often wrong."""
_DAMAGE = (
    tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError, pa.ArrowException,
    RecursionError,
)  # fmt: skip
_HEADER_BYTES = 1 << 20
"""Read at once between members: a long name, or a PAX header, which tarfile parses in memory."""
_GROWTH, _SLACK = 200, 1 << 26
"""Most bytes unpacked for each packed one, and beyond that: pictures hardly shrink, zeros do."""
_STEP = 1 << 20
_XZ_BYTES = 1 << 28
"""Memory to unpack xz: its largest preset takes 65 MiB, and a file may ask for 4 GiB."""


class _Xz(io.RawIOBase):
    """An xz file, unpacked with bounded memory, which `lzma.open` does not offer."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._machine = lzma.LZMADecompressor(memlimit=_XZ_BYTES)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; fewer at the end alone."""
        parts, left = [], size
        while left > 0:
            if self._machine.eof:  # another stream may follow
                rest = self._machine.unused_data or self._file.read(_STEP)
                if not rest.strip(b"\0"):
                    break
                self._machine = lzma.LZMADecompressor(memlimit=_XZ_BYTES)
            else:
                rest = self._file.read(_STEP) if self._machine.needs_input else b""
                if self._machine.needs_input and not rest:
                    raise EOFError("it is cut off")
            part = self._machine.decompress(rest, max_length=left)
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Guarded(io.RawIOBase):
    """A stream that bounds the bytes of a read, and those unpacked in all."""

    def __init__(self, stream: Any, packed: int | None) -> None:
        """`packed` is the compressed file's size; none: it is uncompressed and can seek."""
        self._stream, self._packed, self._at = stream, packed, 0
        self.most, self.last = _HEADER_BYTES, b""

    def read(self, size: int = -1) -> bytes:
        """At most `most` bytes. Raises tarfile.ReadError when more are asked for."""
        if not 0 <= size <= self.most:
            raise tarfile.ReadError(f"a part of {size:,} bytes is more than {self.most:,}")
        self.last = self._stream.read(size)
        self._at += len(self.last)
        if self._packed is not None and self._at > _GROWTH * self._packed + _SLACK:
            raise tarfile.ReadError(f"it unpacks to more than {_GROWTH} times its size")
        return self.last

    def seek(self, position: int, whence: int = 0) -> int:
        """Seeks forward. Raises tarfile.ReadError for seeking back."""
        if position < self._at or whence:
            raise tarfile.ReadError("a member lies before the one before it")
        if self._packed is None:
            self._stream.seek(position)
            self._at = position
        else:
            # in steps, so that a member of any size is passed over in bounded memory
            while self._at < position and self.read(min(_STEP, position - self._at)):
                pass
        return self._at

    def tell(self) -> int:
        return self._at


class Tar:
    """A tar opened for reading, member by member."""

    def __init__(self, stream: _Guarded) -> None:
        self._stream = stream
        self._tar = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Yields all members but folders. Raises EOFError for a tar without an end mark."""
        while (member := self._tar.next()) is not None:
            self._tar.members = []  # type: ignore[attr-defined] # it would remember them all
            if member.size < 0:
                raise tarfile.ReadError(f"a member has {member.size} bytes")
            if not member.isdir():
                yield member
        # tarfile takes a damaged header for the end: the real one is a block of zeros
        if len(self._stream.last) < tarfile.BLOCKSIZE:
            raise EOFError("it ends without a tar's end mark")
        if self._stream.last.strip(b"\0"):
            raise EOFError(f"the member at byte {self._tar.offset:,} has a damaged header")

    def content(self, member: tarfile.TarInfo) -> bytes:
        """The bytes of the newest member, of at most `MAX_ENCODED_BYTES`."""
        self._stream.most = MAX_ENCODED_BYTES
        try:
            self._stream.seek(member.offset_data)
            content = self._stream.read(member.size)
        finally:
            self._stream.most = _HEADER_BYTES
        if len(content) != member.size:
            raise EOFError(f"{member.name} is cut off")
        return content


def is_packed(path: Path) -> bool:
    """Whether a file begins like a compressed one."""
    with path.open("rb") as file:
        return _packer(file) is not None


def _packer(file: BinaryIO) -> Any:
    begin = file.read(8)
    return next((p for magic, p in _PACKERS.items() if begin.startswith(magic)), None)


@contextmanager
def open_tar(path: Path) -> Iterator[Tar]:
    """Opens a tar that is compressed by gzip, bzip2, xz or zstd, or not at all.

    Raises InputError for a damaged or truncated one, also while it is read.
    """
    try:
        with path.open("rb") as file:
            packer = _packer(file)
            file.seek(0)
            if packer is None:
                yield Tar(_Guarded(file, None))
            else:
                with packer(path) as stream:
                    yield Tar(_Guarded(stream, os.fstat(file.fileno()).st_size))
    except InputError:
        raise
    except _DAMAGE as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} is damaged or truncated ({why}): restore it, or leave it out of the pattern"
        ) from error
