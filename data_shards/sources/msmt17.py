"""MSMT17, versions 1 and 2: pedestrian images, with lists of their identities.

A line ``0002/0002_001_03_0303morning_0001_0.jpg 2`` of a list names an image, whose third field is
the camera, and its identity. Training and test identities are both counted from 0, so the test
ones are named ``msmt17/test/0002`` here.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data_shards.settings import InputError, Settings
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.listing import (
    Listed,
    folder_within,
    leads_outside,
    lines_of,
    read_listed,
)

_LISTS = {"train": "train", "val": "train", "query": "query", "gallery": "gallery"}
_LINE = re.compile(r"(\S.*) ([0-9]+)\s*", re.DOTALL)


class Msmt17Settings(Settings):
    """MSMT17 as unpacked."""

    path: Path
    """Folder with the lists and `train` and `test`, or `mask_train_v2` and `mask_test_v2`."""
    validation: bool = True
    """Train on the images of `list_val.txt`, too; the CRL paper's benchmark leaves them out."""


def msmt17_counts(settings: Msmt17Settings) -> dict[str, int]:
    """The published numbers of images."""
    return {"train": 30_248 + 2_373 * settings.validation, "query": 11_659, "gallery": 82_161}


def read_msmt17(settings: Msmt17Settings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """The listed images in the lists' order, from the item `start` on."""
    return read_listed(list_msmt17(settings), start)


def list_msmt17(settings: Msmt17Settings) -> Iterator[Listed | Refusal]:
    """Every line of the lists. Raises InputError naming list and line."""
    root = settings.path
    train = folder_within(root, "train", "mask_train_v2")
    test = folder_within(root, "test", "mask_test_v2")
    people: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for name, role in _LISTS.items():
        if name == "val" and not settings.validation:
            continue
        listed, folder = root / f"list_{name}.txt", train if role == "train" else test
        for number, line in enumerate(lines_of(listed), start=1):
            where = f"line {number} of {listed}"
            relative, person, camera = _fields(line, where)
            _check(people[role == "train"], Path(relative).parent.as_posix(), person, where)
            yield Listed(
                path=folder / relative,
                identity=f"msmt17/{'' if role == 'train' else 'test/'}{person:04d}",
                camera=f"msmt17/c{camera}",
                key=f"msmt17/{folder.name}/{relative}",
                role=role,
            )


def _fields(line: str, where: str) -> tuple[str, int, int]:
    """The path, the identity and the camera of a list's line."""
    found = _LINE.fullmatch(line)
    fields = Path(found[1]).name.split("_") if found else []
    if found is None or len(fields) < 3 or not re.fullmatch("[0-9]+", fields[2]):
        raise InputError(
            f"{where} is {line!r}, not like '0002/0002_001_03_0303morning_0001_0.jpg 2': "
            "take the list from its publisher again"
        )
    if leads_outside(found[1]):
        raise InputError(f"{where} leads outside of the folder ({found[1]!r}): nothing was read")
    return found[1], int(found[2]), int(fields[2])


def _check(people: dict[str, str], folder: str, person: int, where: str) -> None:
    """Raises InputError unless folders and identities correspond one to one.

    The lists have no checksums: a damaged digit shows as a contradiction.
    """
    if people.setdefault(f"folder {folder}", str(person)) != str(person) or (
        people.setdefault(f"identity {person}", folder) != folder
    ):
        raise InputError(
            f"{where} gives folder {folder!r} the identity {person}, which other lines contradict: "
            "take the list from its publisher again"
        )
