"""For sources that list their images, with identity, camera and role, before any is read."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from data_shards.settings import InputError
from data_shards.sources import MAX_ENCODED_BYTES, Refusal, SourceImage
from data_shards.sources.magic import HEAD, picture_kind
from untrusted.files import open_regular
from untrusted.pictures import FORMATS
from untrusted.text_files import read_lines

_IMAGE_NAME = re.compile(
    r".*\.(jpe?g|jpe|jfif|png|webp|dib|bmp|gif|tiff?|p[gpbn]m|jp2|j2k|jpx|jxl|avif|hei[cf]|tga|pcx"
    r"|psd|ico|cr[23]|nef|arw|dng|orf|rw2|raf)",
    re.I | re.S,
)


class Listed(NamedTuple):
    """An image still to be read; the other fields are `SourceImage`'s."""

    path: Path
    identity: str
    camera: str
    key: str
    role: str = "train"


def read_listed(
    listed: Iterable[Listed | Refusal], start: int = 0
) -> Iterator[SourceImage | Refusal]:
    """Reads the images from item `start` on; one whose file cannot be read becomes a refusal."""
    for item in islice(listed, start, None):
        yield item if isinstance(item, Refusal) else _read(item)


def _read(item: Listed) -> SourceImage | Refusal:
    content = content_of(item)
    return content if isinstance(content, Refusal) else SourceImage(content, *item[1:])


def content_of(item: Listed) -> bytes | Refusal:
    """The bytes of a listed file."""
    try:
        facts = item.path.stat()
        if not stat.S_ISREG(facts.st_mode):
            return Refusal(item.key, item.identity, "unreadable", "it is no file")
        if facts.st_size > MAX_ENCODED_BYTES:
            return Refusal(item.key, item.identity, "too large", f"{facts.st_size:,} bytes")
        return item.path.read_bytes()
    except FileNotFoundError:
        return Refusal(item.key, item.identity, "missing", f"there is no {item.path}")
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        return Refusal(item.key, item.identity, "unreadable", str(error))


def named_like_image(path: Path) -> bool:
    """Whether a file has the name of a picture: with other content it counts as refused."""
    return _IMAGE_NAME.fullmatch(path.name) is not None


def picture_of(path: Path, key: str, identity: str) -> bytes | Refusal:
    """The bytes of a picture, or of a file that is named like one."""
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
            kind, wanted = picture_kind(head), named_like_image(path)
            if kind is None and not wanted:
                return Refusal(
                    key=key,
                    identity=identity,
                    reason="not a picture",
                    why=f"it begins {head[:8]!r}",
                    counts=False,
                )
            if kind is not None and kind not in FORMATS:
                why = f"{kind} cannot be read here: convert it to JPEG or PNG first"
                return Refusal(key, identity, f"{kind}, not readable here", why)
            if (size := os.fstat(file.fileno()).st_size) > MAX_ENCODED_BYTES:
                return Refusal(key, identity, "too large", f"{size:,} bytes")
            return head + file.read(MAX_ENCODED_BYTES - len(head) + 1)
    except OSError as error:
        return Refusal(key, identity, "unreadable", error.strerror or str(error))


def leads_outside(name: str) -> bool:
    """Whether a list's entry names a path outside of the list's folder."""
    return Path(name).is_absolute() or ".." in Path(name).parts


def folder_within(root: Path, *names: str) -> Path:
    """The first folder among `names` below `root`. Raises InputError when there is none."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise InputError(
        f"{root} has no folder {' or '.join(names)}: give the folder that the archive unpacks to"
    )


def lines_of(path: Path) -> list[str]:
    """The lines of a list, without empty ones. Raises InputError when it is missing or no text."""
    return [line for line in read_lines(path, "the list") if line.strip()]


def files_in(folder: Path) -> list[Path]:
    """The files directly in `folder`, without hidden ones, by name."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir())


def not_named(path: Path, key: str, example: str) -> Refusal:
    """The refusal of a file whose name does not follow the source's pattern, such as `example`.

    It counts only where the name is that of a picture.
    """
    image = named_like_image(path)
    reason = "not named like the others" if image else "not named like an image"
    return Refusal(key, "", reason, f"{path.name!r} is not like {example}", counts=image)
