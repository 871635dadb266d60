"""MegaFace's million distractors, and FaceScrub's probes that are searched for among them.

Both are trees of aligned images: the folder of a FaceScrub image names its identity, that of a
MegaFace image the photo stream it comes from. A list may select some of them (the benchmark uses
80 identities as probes); the customary list of wrongly labelled images becomes the table `noisy`,
so that results can be given raw and cleaned.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from data_shards.settings import InputError, Settings
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.listing import Listed, leads_outside, lines_of, read_listed

_ENDINGS = (".jpg", ".jpeg", ".png")


class MegafaceSettings(Settings):
    """MegaFace's distractors, aligned."""

    path: Path
    """Folder of the images."""
    only: Path | None = None
    """Read only these: a path a line, or the benchmark's JSON with a list `path`; none: all."""
    noise: Path | None = None
    """List of images that show whom they should not: they become the table `noisy`."""


class FacescrubSettings(MegafaceSettings):
    """FaceScrub's probes, aligned, one folder an identity."""


def read_megaface(settings: MegafaceSettings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """The distractors by path or in their list's order, from the item `start` on."""
    return read_listed(list_megaface(settings), start)


def list_megaface(settings: MegafaceSettings) -> Iterator[Listed | Refusal]:
    """Every image in order, role "distractor". Raises InputError naming the list."""
    for name in _names(settings):
        owner = PurePosixPath(name).parent.as_posix()
        yield _item(settings.path, name, "megaface", owner, "distractor")


def megaface_tables(settings: MegafaceSettings) -> dict[str, pa.Table]:
    """`noisy`: the images that cleaned results leave out, when a list of them was given."""
    return _noisy(settings, "megaface")


def read_facescrub(settings: FacescrubSettings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """The probes by path or in their list's order, from the item `start` on."""
    return read_listed(list_facescrub(settings), start)


def list_facescrub(settings: FacescrubSettings) -> Iterator[Listed | Refusal]:
    """Every image in order, role "query". Raises InputError naming the list."""
    for name in _names(settings):
        yield _item(settings.path, name, "facescrub", PurePosixPath(name).parts[0], "query")


def facescrub_tables(settings: FacescrubSettings) -> dict[str, pa.Table]:
    """`noisy`: the images that cleaned results leave out, when a list of them was given."""
    return _noisy(settings, "facescrub")


def _item(root: Path, name: str, source: str, owner: str, role: str) -> Listed | Refusal:
    key = f"{source}/{name}"
    if "/" not in name:
        return Refusal(key, "", "no identity", "it lies beside the folders")
    return Listed(path=root / name, identity=f"{source}/{owner}", camera=source, key=key, role=role)


def _names(settings: MegafaceSettings) -> Iterator[str]:
    """Paths of images, relative to the folder."""
    root, only = settings.path, settings.only
    if not root.is_dir():
        raise InputError(f"{root} is no folder: give the one that the archive unpacks to")
    if only is None:
        yield from _walk(root)
        return
    for entry in _entries(only):
        if leads_outside(entry):
            raise InputError(f"{only} names {entry!r}, outside of {root}: nothing was read")
        yield PurePosixPath(entry).as_posix()


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(_ENDINGS):
                yield (Path(folder) / file).relative_to(root).as_posix()


def _entries(listed: Path) -> list[str]:
    """The paths of a list, one a line or the member `path` of a JSON object."""
    lines = lines_of(listed)
    if not lines or not lines[0].lstrip().startswith("{"):
        return [line.strip() for line in lines]
    try:
        paths = json.loads("\n".join(lines))["path"]
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise TypeError("a path is no text")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{listed} is no JSON with a list `path` of paths ({error})") from error
    return paths


def _noisy(settings: MegafaceSettings, source: str) -> dict[str, pa.Table]:
    if settings.noise is None:
        return {}
    lines = (line.strip() for line in lines_of(settings.noise))
    wanted = {_stem(line.split("\t")[-1]) for line in lines if not line.startswith("#")}
    keys = [f"{source}/{name}" for name in _names(settings) if wanted & _spellings(name)]
    if not keys:
        raise InputError(
            f"no image of {settings.path} is among the {len(wanted):,} that {settings.noise} lists"
        )
    return {"noisy": pa.table({"sample_key": pa.array(keys, pa.string())})}


def _spellings(name: str) -> set[str]:
    """How a noise list may name an image: by its path or by its file alone."""
    return {_stem(name), _stem(PurePosixPath(name).name)}


def _stem(name: str) -> str:
    """`name` without its ending: lists and folders differ in it."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)
