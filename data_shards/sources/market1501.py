"""Market-1501 and DukeMTMC-reID: pedestrian images named after identity and camera.

``0001_c1s1_001051_00.jpg`` is identity 1 seen by camera 1. In the gallery, identity -1 is junk
(neither right nor wrong, left out here) and 0000 a distractor that no query matches.

DukeMTMC-reID was withdrawn by its publisher over privacy and is not offered anywhere; this reads
the copies that people still hold.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_shards.settings import Settings
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.listing import Listed, files_in, folder_within, not_named, read_listed

_NAME = re.compile(r"(-1|[0-9]+)_c([0-9]+)(?=\D).*\.(?:jpg|jpeg|png)", re.IGNORECASE | re.DOTALL)
_ROLES = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
_JUNK, _DISTRACTOR = -1, 0


class Market1501Settings(Settings):
    """Market-1501 as unpacked."""

    path: Path
    """Folder with `bounding_box_train`, `query` and `bounding_box_test`."""


class DukeSettings(Settings):
    """DukeMTMC-reID as unpacked (withdrawn by its publisher: for copies that are still held)."""

    path: Path
    """Folder with `bounding_box_train`, `query` and `bounding_box_test`."""


MARKET1501_COUNTS = {"train": 12_936, "query": 3_368, "gallery+distractor": 15_913}
DUKE_COUNTS = {"train": 16_522, "query": 2_228, "gallery": 17_661}


def read_market1501(
    settings: Market1501Settings, start: int = 0
) -> Iterator[SourceImage | Refusal]:
    """The images by folder and name, from the item `start` on."""
    return read_listed(list_market1501(settings), start)


def list_market1501(settings: Market1501Settings) -> Iterator[Listed | Refusal]:
    """Every file in order. Raises InputError when a folder is missing."""
    return _listed("market1501", settings.path)


def read_duke(settings: DukeSettings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """The images by folder and name, from the item `start` on."""
    return read_listed(list_duke(settings), start)


def list_duke(settings: DukeSettings) -> Iterator[Listed | Refusal]:
    """Every file in order. Raises InputError when a folder is missing."""
    return _listed("dukemtmc", settings.path)


def _listed(source: str, root: Path) -> Iterator[Listed | Refusal]:
    for folder, role in [(folder_within(root, name), role) for name, role in _ROLES.items()]:
        for path in files_in(folder):
            key = f"{source}/{folder.name}/{path.name}"
            name = _NAME.fullmatch(path.name)
            if name is None:
                yield not_named(path, key, "0001_c1s1_001051_00.jpg")
                continue
            person, camera = int(name[1]), int(name[2])
            if person == _JUNK:
                yield Refusal(key, "", "junk", "identity -1 is left out on purpose", counts=False)
                continue
            role_here = "distractor" if person == _DISTRACTOR else role
            yield Listed(
                path=path,
                identity=f"{source}/{person:04d}",
                camera=f"{source}/c{camera}",
                key=key,
                role=role_here,
            )
