"""An image folder: ``root/identity/anything``, at any depth below the identity.

What is a picture is decided by its first bytes: many are called ``0.jpg.1`` or have no suffix.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data_shards.settings import InputError, Settings
from data_shards.sources import UNKNOWN_CAMERA, Refusal, SourceImage, named
from data_shards.sources.listing import picture_of


class FolderSettings(Settings):
    """A folder of images."""

    path: Path
    """The folder; each folder in it is an identity."""
    cameras: bool = False
    """Whether each folder within an identity's is a camera: root/identity/camera/image.jpg."""
    name: str = ""
    """Put before each identity's name, so that merged datasets do not share names: mine/alice."""


def _entries(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path | OSError]:
    """Files below a folder, by name; hidden entries and folders that hold nothing as themselves."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        own = folder.stat()
    except OSError as error:
        yield error
        return
    if (own.st_dev, own.st_ino) in above:
        yield OSError(0, "a symlink leads back to a folder that holds it", str(folder))
        return
    if not entries and above:
        yield folder
    for entry in entries:
        path = folder / entry.name
        if path.is_dir() and not entry.name.startswith("."):
            yield from _entries(path, above | {(own.st_dev, own.st_ino)})
        else:
            yield path


def _item(root: Path, path: Path, settings: FolderSettings) -> SourceImage | Refusal:
    parts = path.relative_to(root).parts
    key = "/".join(parts)
    if path.name.startswith("."):
        return Refusal(key, "", "hidden", "its name begins with a dot", counts=False)
    if path.is_dir():
        identity = named(settings.name, parts[0])
        return Refusal(key, identity, "empty folder", "it holds nothing", counts=False)
    identity = named(settings.name, parts[0]) if len(parts) > 1 else ""
    content = picture_of(path, key, identity)
    if isinstance(content, Refusal):
        return content
    if len(parts) == 1:
        return Refusal(key, "", "no identity", "it lies beside the identities' folders")
    if settings.cameras and len(parts) == 2:
        return Refusal(key, identity, "no camera", "it lies beside the cameras' folders")
    camera = parts[1] if settings.cameras else UNKNOWN_CAMERA
    return SourceImage(content, identity, camera, key)


def read_folder(settings: FolderSettings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """The images below a folder in the order of their names, from the item `start` on.

    Symlinks are followed. Memory: the names in one folder. Raises InputError when there is no such
    folder.
    """
    root = settings.path
    if not root.is_dir():
        raise InputError(f"{root} is no folder: give the one that holds the identities' folders")
    for found in islice(_entries(root, frozenset()), start, None):
        if isinstance(found, OSError):
            path = Path(found.filename).relative_to(root)
            identity = named(settings.name, path.parts[0]) if path.parts else ""
            yield Refusal(path.as_posix(), identity, "unreadable", found.strerror or str(found))
        else:
            yield _item(root, found, settings)
