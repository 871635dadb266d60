"""WebDataset shards of other programs: local tars, named by a path, a glob or a brace pattern.

The library webdataset is not used: its reader takes a member of any size into memory, groups only
neighbouring members, stops at a repeated key, and does not report what it leaves out.
"""

import glob
import os
import re
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from data_shards.settings import InputError, Settings
from data_shards.sources import MAX_ENCODED_BYTES, UNKNOWN_CAMERA, Refusal, SourceImage, named
from data_shards.sources.guarded_tar import Tar, is_packed, open_tar
from untrusted.json_text import parse_json

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)
_TARS = 1_000_000
"""Most tars of one import."""
_FIRST = 100
"""Members looked at to find out whether those of a sample follow each other."""
_INDEXED = 5_000_000
"""Most members whose names and places are kept in memory, about a gigabyte."""
Problem = tuple[str, str]


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
    """The members of a tar that share one key."""

    def __init__(self, key: str) -> None:
        self.key, self.problem = key, ("", "")
        self.members: dict[str, bytes] = {}

    def add(self, extension: str, content: bytes) -> None:
        if extension in self.members:
            self.problem = ("duplicate key", f"it has two members .{extension}")
        self.members[extension] = content

    def text(self, where: str) -> str:
        """The text at `where` (see `WebDatasetSettings.identity`). Raises ValueError."""
        extension, _, field = where.partition(":")
        if extension not in self.members:
            raise ValueError(f"it has no member .{extension}")
        content = self.members[extension].decode()
        if not field:
            return content.strip()
        found = parse_json(content)
        value = found.get(field) if isinstance(found, dict) else None
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(f"{field!r} of its .{extension} is no name or number")
        return str(value)


def _matches(name: str) -> list[str]:
    if Path(name).exists() or not glob.has_magic(name):
        return [name]
    folder, _, last = name.rpartition("/")
    # a folder's own name may have brackets
    literal = f"{glob.escape(folder)}/{last}" if folder else name
    return sorted({*glob.glob(name), *glob.glob(literal)})  # noqa: PTH207


def tar_files(pattern: str) -> list[Path]:
    """The tars that a pattern names. Raises InputError for a missing one, and for URLs."""
    # the library webdataset would run a ``pipe:`` URL as a command
    if re.match(r"[a-z0-9+.-]+:", pattern):
        why = "would run a command" if pattern.startswith("pipe:") else "is not read from"
        raise InputError(f"{pattern!r} {why}: give a path, glob or brace pattern of local tars")
    if Path(pattern).is_file():
        return [Path(pattern)]
    try:
        names = list(islice(braceexpand(pattern), _TARS + 1))
    except ValueError as error:
        raise InputError(f"{pattern!r}: {error}") from error
    if len(names) > _TARS:
        raise InputError(f"{pattern!r} names more than {_TARS:,} tars: give a smaller range")
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


class _Place(NamedTuple):
    """Where a member's bytes are."""

    offset: int
    size: int


def _named(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """A member's key and extension; None for hidden files and other systems' leftovers."""
    name = member.name.removeprefix("./")
    if name.rpartition("/")[2].startswith(".") or name.startswith("__MACOSX/"):
        return None
    matched = _MEMBER.fullmatch(name)
    return (matched[1], matched[2].lower()) if matched else (name, "")


def _problem(key: str, extension: str, member: tarfile.TarInfo, wanted: frozenset[str]) -> Problem:
    """A member's fault as a reason and a sentence; both empty where there is none."""
    if not extension and "." not in member.name.rpartition("/")[2]:
        return "not of a sample", "its name has no extension"
    if key.startswith("/") or ".." in key.split("/"):
        return "unsafe name", "its name leads out of the archive"
    if extension in wanted:
        if not member.isreg() or member.issparse():
            return "unreadable", f"its .{extension} is a link or a device"
        if member.size > MAX_ENCODED_BYTES:
            return "too large", f"its .{extension} has {member.size:,} bytes"
    return "", ""


def _samples(tar: Tar, wanted: frozenset[str], skip: int) -> Iterator[_Sample]:
    """Yields the samples in order; those before `skip` without their members' content."""
    sample: _Sample | None = None
    number = -1
    for member in tar:
        if (found := _named(member)) is None:
            continue
        key, extension = found
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample, number = _Sample(key), number + 1
        problem = _problem(key, extension, member, wanted)
        if problem[0]:
            sample.problem = problem
        elif extension in wanted:
            sample.add(extension, b"" if number < skip else tar.content(member))
    if sample is not None:
        yield sample


def _apart(path: Path, settings: WebDatasetSettings, wanted: frozenset[str]) -> bool:
    """Whether a sample's members do not follow each other, as in ``tar cf x.tar *.jpg *.cls``.

    Decided by the first `_FIRST` members: either a sample continues after another one began, or
    none has both an identity and a picture.
    """
    identity = settings.identity.partition(":")[0]
    held: dict[str, set[str]] = {}
    newest = ""
    with open_tar(path) as tar:
        for member in islice(tar, _FIRST):
            if (found := _named(member)) is None or found[1] not in wanted:
                continue
            key, extension = found
            if key in held and key != newest and extension not in held[key]:
                return True
            held.setdefault(key, set()).add(extension)
            newest = key
    whole = any(identity in has and has - {identity} for has in held.values())
    return len(held) > 1 and not whole


def _samples_apart(path: Path, wanted: frozenset[str], skip: int) -> Iterator[_Sample]:
    """Yields the samples of an uncompressed tar with members in any order, by first member.

    Two passes: the names and places of all members first, then each sample's content.
    """
    places: dict[str, dict[str, _Place]] = {}
    samples: dict[str, _Sample] = {}
    count = 0
    with open_tar(path) as tar:
        for member in tar:
            if (found := _named(member)) is None:
                continue
            key, extension = found
            sample = samples.setdefault(key, _Sample(key))
            problem = _problem(key, extension, member, wanted)
            if problem[0]:
                sample.problem = problem
            elif extension in wanted:
                if extension in places.setdefault(key, {}):
                    sample.problem = ("duplicate key", f"it has two members .{extension}")
                places[key][extension] = _Place(member.offset_data, member.size)
            if (count := count + 1) > _INDEXED:
                raise InputError(
                    f"{path} has more than {_INDEXED:,} members, and those of a sample are no "
                    "neighbours: pack it anew by tar --sort=name"
                )
    with path.open("rb") as file:
        for number, sample in enumerate(samples.values()):
            for extension, place in places.get(sample.key, {}).items():
                content = b""
                if number >= skip:
                    file.seek(place.offset)
                    content = file.read(place.size)
                sample.members[extension] = content
            yield sample
            sample.members.clear()


def _of_tar(
    path: Path, settings: WebDatasetSettings, wanted: frozenset[str], skip: int
) -> Iterator[_Sample]:
    if _apart(path, settings, wanted):
        if is_packed(path):
            raise InputError(
                f"{path} is packed, and the members of its samples are no neighbours: unpack it, "
                "or pack it anew by tar --sort=name"
            )
        yield from _samples_apart(path, wanted, skip)
    else:
        with open_tar(path) as tar:
            yield from _samples(tar, wanted, skip)


def _item(sample: _Sample, shard: str, settings: WebDatasetSettings) -> SourceImage | Refusal:
    key, identity = f"{shard}/{sample.key}", ""
    reason, why = sample.problem
    if reason:
        return Refusal(key, identity, reason, why, counts=reason != "not of a sample")
    try:
        identity = named(settings.name, sample.text(settings.identity))
        camera = sample.text(settings.camera) if settings.camera else UNKNOWN_CAMERA
    except ValueError as error:
        return Refusal(key, identity, "label", str(error))
    extensions = (settings.image,) if settings.image else PICTURES
    for extension in extensions:
        if extension in sample.members:
            return SourceImage(sample.members[extension], identity, camera, key)
    return Refusal(key, identity, "no picture", f"it has no member .{', .'.join(extensions)}")


def read_webdataset(
    settings: WebDatasetSettings, start: int = 0
) -> Iterator[SourceImage | Refusal]:
    """Reads the samples of all tars in the pattern's order, from sample `start` on.

    Memory: one sample, and the index of a tar whose samples' members do not follow each other.
    Raises InputError for a missing, damaged or truncated tar.
    """
    paths, wanted = tar_files(settings.path), _wanted(settings)
    common = os.path.commonpath([path.parent.absolute() for path in paths])
    number = 0
    for path in paths:
        shard = os.path.relpath(path.absolute(), common)
        for sample in _of_tar(path, settings, wanted, start - number):
            if number >= start:
                yield _item(sample, shard, settings)
            number += 1
