"""An image folder: ``root/identity/anything``, at any depth below the identity.

What is a picture is decided by its first bytes: many are called ``0.jpg.1`` or have no suffix.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import pyarrow as pa

from data_shards.settings import InputError, Settings
from data_shards.sources import ROLES, UNKNOWN_CAMERA, Refusal, SourceImage, named
from data_shards.sources.folder_lists import pairs_table, read_roles
from data_shards.sources.listing import picture_of
from untrusted.text import file_name


class FolderSettings(Settings):
    """A folder of images."""

    path: Path
    """The folder; each folder in it is an identity."""
    cameras: bool = False
    """Whether each folder within an identity's is a camera: root/identity/camera/image.jpg."""
    name: str = ""
    """Put before each identity's name, so that merged datasets do not share names: mine/alice."""
    roles: Literal["folders"] | Path | None = None
    """Which images are trained on and tested. folders: those in root/train, root/query,
    root/gallery and root/distractor, identities being one level below. A file: CSV with columns
    path and role, where a path below root may be an image or a folder of them; the others are
    trained on. None: all are."""
    pairs: Path | None = None
    """Pairs to verify, which become the table that protocol verification reads: LFW's text
    (pairs.txt), or CSV with columns path_a, path_b, same and, maybe, fold."""


def entries_below(
    folder: Path, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Path | OSError]:
    """Yields the files below a folder by name; hidden entries and empty folders as themselves.

    A folder that cannot be read is yielded as its OSError, and so is a symlink that leads back to
    a folder on the way down, whose (device, inode) is in `above`: following it would not end.
    """
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
            yield from entries_below(path, above | {(own.st_dev, own.st_ino)})
        else:
            yield path


def _item(
    root: Path, path: Path, settings: FolderSettings, roles: dict[str, str]
) -> SourceImage | Refusal:
    """The image at `path`, or why it is refused; `roles` are those of files and folders, by key."""
    parts = Path(file_name(path.relative_to(root))).parts
    key = "/".join(parts)
    above = ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]
    role = next((roles[name] for name in above if name in roles), ROLES[0])
    if path.name.startswith("."):
        return Refusal(key, "", "hidden", "its name begins with a dot", counts=False)
    if settings.roles == "folders":
        parts = parts[1:] or (path.name,)
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
    return SourceImage(image=content, identity=identity, camera=camera, key=key, role=role)


def _roles(settings: FolderSettings) -> dict[str, str]:
    """The roles of files and folders, by key. Raises InputError."""
    if settings.roles != "folders":
        return read_roles(settings.roles, settings.path) if settings.roles else {}
    seen = sorted(entry.name for entry in os.scandir(settings.path) if entry.is_dir())
    if other := [name for name in seen if name not in ROLES and not name.startswith(".")]:
        raise InputError(
            f"{settings.path / other[0]} is no role: with roles=folders, give folders called "
            f"{', '.join(ROLES)}"
        )
    return {role: role for role in ROLES}


def folder_tables(settings: FolderSettings) -> dict[str, pa.Table]:
    """The table ``pairs``, if a list of pairs is given. Raises InputError."""
    if settings.pairs is None:
        return {}
    below = ROLES if settings.roles == "folders" else ()
    return {"pairs": pairs_table(settings.pairs, settings.path, below)}


def read_folder(settings: FolderSettings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """The images below a folder in the order of their names, from the item `start` on.

    Symlinks are followed. Memory: the names in one folder, and the list of roles. Raises InputError
    when there is no such folder, or the list of roles is wrong.
    """
    root = settings.path
    if not root.is_dir():
        raise InputError(f"{root} is no folder: give the one that holds the identities' folders")
    roles = _roles(settings)
    for found in islice(entries_below(root), start, None):
        if isinstance(found, OSError):
            path = Path(file_name(Path(found.filename).relative_to(root)))
            identity = named(settings.name, path.parts[0]) if path.parts else ""
            yield Refusal(path.as_posix(), identity, "unreadable", found.strerror or str(found))
        else:
            yield _item(root, found, settings, roles)
