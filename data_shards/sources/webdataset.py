"""WebDataset shards that others wrote: local tars, named by a path, a glob or a brace pattern."""

import bz2
import glob
import gzip
import json
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from braceexpand import braceexpand

from data_shards.settings import InputError, Settings
from data_shards.sources import MAX_ENCODED_BYTES, UNKNOWN_CAMERA, Refusal, SourceImage, named

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
_OPENERS: dict[str, Any] = {
    ".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open
}  # fmt: skip
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
_BLOCK = 512


class WebDatasetSettings(Settings):
    """WebDataset tars."""

    path: str
    """Path, glob (``faces/*.tar``) or brace pattern (``faces-{0000..0127}.tar``) of local tars."""
    identity: str = "cls"
    """The member that names the identity: an extension whose text is the name (``cls``), or
    ``json:FIELD``, a field of such a JSON member."""
    camera: str = ""
    """The same for the camera; empty: it is unknown."""
    image: str = ""
    """Extension of the picture; empty: the first of jpg, jpeg, png, webp, bmp, gif, tif, tiff."""
    name: str = ""
    """Put before each identity's name, so that merged datasets do not share names: mine/17."""


class _Sample:
    """Members of a tar with one key, as they come."""

    def __init__(self, key: str) -> None:
        self.key, self.problem = key, ("", "")
        self.members: dict[str, bytes] = {}

    def add(self, extension: str, content: bytes) -> None:
        if extension in self.members:
            self.problem = ("duplicate key", f"it has two members .{extension}")
        self.members[extension] = content

    def text(self, where: str) -> str:
        """What `where` (see `WebDatasetSettings.identity`) says. Raises ValueError."""
        extension, _, field = where.partition(":")
        if extension not in self.members:
            raise ValueError(f"it has no member .{extension}")
        content = self.members[extension].decode()
        if not field:
            return content.strip()
        found = json.loads(content)
        value = found.get(field) if isinstance(found, dict) else None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{field!r} of its .{extension} is no name or number")
        return str(value)


def _matches(name: str) -> list[str]:
    return sorted(glob.glob(name)) if glob.has_magic(name) else [name]  # noqa: PTH207


def tar_files(pattern: str) -> list[Path]:
    """The tars that a pattern names. Raises InputError for a missing one, and for URLs."""
    if re.match(r"[a-z0-9+.-]+:", pattern):
        why = "would run a command" if pattern.startswith("pipe:") else "is not read from"
        raise InputError(f"{pattern!r} {why}: give a path, glob or brace pattern of local tars")
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise InputError(f"{pattern!r}: {error}") from error
    found: list[Path] = []
    for name in names:
        matches = _matches(name)
        found += map(Path, matches)
    if not found:
        raise InputError(f"no file matches {pattern!r}: give the path or pattern of tars")
    for path in found:
        if not path.is_file():
            raise InputError(f"{path} is missing: restore it, or leave it out of the pattern")
    return found


def _wanted(settings: WebDatasetSettings) -> frozenset[str]:
    texts = (settings.identity.partition(":")[0], settings.camera.partition(":")[0])
    return frozenset([*texts, *([settings.image] if settings.image else PICTURES)]) - {""}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) != member.size:
        raise EOFError(f"{member.name} is cut off")
    return content


def _samples(tar: tarfile.TarFile, wanted: frozenset[str], skip: int) -> Iterator[_Sample]:
    """Samples one after the other; those before `skip` without their members' content."""
    sample: _Sample | None = None
    number = -1
    for member in tar:
        tar.members = []  # type: ignore[attr-defined] # tarfile would remember them all
        if member.isdir():
            continue
        matched = _MEMBER.fullmatch(member.name)
        key, extension = matched.groups() if matched else (member.name, "")
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample, number = _Sample(key), number + 1
        if not matched:
            sample.problem = ("not of a sample", "its name has no extension, or is hidden")
        elif key.startswith("/") or ".." in key.split("/"):
            sample.problem = ("unsafe name", "its name leads out of the archive")
        elif (extension := extension.lower()) in wanted:
            if not member.isreg() or member.issparse():
                sample.problem = ("unreadable", f"its .{extension} is a link or a device")
            elif member.size > MAX_ENCODED_BYTES:
                sample.problem = ("too large", f"its .{extension} has {member.size:,} bytes")
            else:
                sample.add(extension, b"" if number < skip else _content(tar, member))
    if sample is not None:
        yield sample


def _check_end(file: BinaryIO, tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the end: behind the real one stands a block of zeros."""
    file.seek(tar.offset)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise EOFError("it ends without a tar's end mark")
    if block.strip(b"\0"):
        raise EOFError(f"the member at byte {tar.offset:,} has a damaged header")


def _item(sample: _Sample, shard: str, settings: WebDatasetSettings) -> SourceImage | Refusal:
    key, identity = f"{shard}/{sample.key}", ""
    reason, why = sample.problem
    if reason:
        return Refusal(key, identity, reason, why, counts=reason != "not of a sample")
    try:
        identity = named(settings.name, sample.text(settings.identity))
        camera = sample.text(settings.camera) if settings.camera else UNKNOWN_CAMERA
    except (ValueError, RecursionError) as error:
        return Refusal(key, identity, "label", str(error))
    extensions = (settings.image,) if settings.image else PICTURES
    for extension in extensions:
        if extension in sample.members:
            return SourceImage(sample.members[extension], identity, camera, key)
    return Refusal(key, identity, "no picture", f"it has no member .{', .'.join(extensions)}")


def read_webdataset(
    settings: WebDatasetSettings, start: int = 0
) -> Iterator[SourceImage | Refusal]:
    """The samples of all tars in the pattern's order, from sample `start` on.

    Memory: one sample. Raises InputError for a missing, damaged or truncated tar.
    """
    paths, wanted = tar_files(settings.path), _wanted(settings)
    common = os.path.commonpath([path.parent.absolute() for path in paths])
    number = 0
    for path in paths:
        shard = os.path.relpath(path.absolute(), common)
        opener = _OPENERS.get(path.suffix.lower(), open)
        try:
            with opener(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for sample in _samples(tar, wanted, start - number):
                    if number >= start:
                        yield _item(sample, shard, settings)
                    number += 1
                _check_end(file, tar)
        except _DAMAGE as error:
            raise InputError(
                f"{path} is damaged or truncated ({error}): restore it, or leave it out of the "
                "pattern"
            ) from error
