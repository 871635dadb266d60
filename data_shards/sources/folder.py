"""An image folder: ``root/identity/anything.jpg``, at any depth below the identity."""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data_shards.settings import InputError, Settings
from data_shards.sources import MAX_ENCODED_BYTES, UNKNOWN_CAMERA, Refusal, SourceImage, named
from untrusted.text import file_name

SUFFIXES = frozenset(
    ["", ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"]
)
"""Files named otherwise are no images: they are listed, but not counted as refused ones."""


class FolderSettings(Settings):
    """A folder of images."""

    path: Path
    """The folder; each folder in it is an identity."""
    cameras: bool = False
    """Whether each folder within an identity's is a camera: root/identity/camera/image.jpg."""
    name: str = ""
    """Put before each identity's name, so that merged datasets do not share names: mine/alice."""


def _files(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path | OSError]:
    """The files below a folder, by name, but for hidden ones and folders within themselves."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        own = folder.stat()
    except OSError as error:
        yield error
        return
    if (own.st_dev, own.st_ino) in above:
        yield OSError(0, "a symlink leads back to a folder that holds it", str(folder))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        if path.is_dir():
            yield from _files(path, above | {(own.st_dev, own.st_ino)})
        else:
            yield path


def _item(root: Path, path: Path, settings: FolderSettings) -> SourceImage | Refusal:
    parts = Path(file_name(path.relative_to(root))).parts
    key = "/".join(parts)
    identity = named(settings.name, parts[0]) if len(parts) > 1 else ""
    if path.suffix.lower() not in SUFFIXES:
        return Refusal(key, identity, "not named like an image", path.suffix, counts=False)
    if len(parts) == 1:
        return Refusal(key, "", "no identity", "it lies beside the identities' folders")
    if settings.cameras and len(parts) == 2:
        return Refusal(key, identity, "no camera", "it lies beside the cameras' folders")
    camera = parts[1] if settings.cameras else UNKNOWN_CAMERA
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            return Refusal(key, identity, "unreadable", "it is no file")
        if facts.st_size > MAX_ENCODED_BYTES:
            return Refusal(key, identity, "too large", f"{facts.st_size:,} bytes")
        return SourceImage(path.read_bytes(), identity, camera, key)
    except OSError as error:
        return Refusal(key, identity, "unreadable", error.strerror or str(error))


def read_folder(settings: FolderSettings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """The images below a folder in the order of their names, from the item `start` on.

    Symlinks are followed. Memory: the names in one folder. Raises InputError when there is no such
    folder.
    """
    root = settings.path
    if not root.is_dir():
        raise InputError(f"{root} is no folder: give the one that holds the identities' folders")
    for found in islice(_files(root, frozenset()), start, None):
        if isinstance(found, OSError):
            key = file_name(Path(found.filename).relative_to(root))
            yield Refusal(key, "", "unreadable", found.strerror or str(found))
        else:
            yield _item(root, found, settings)
