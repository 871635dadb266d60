"""CRL-person as its authors distribute it: Market-1501, DukeMTMC-reID and MSMT17 in one.

``MIX/{train,query,gallery}/0000_0_00_000.jpg`` is identity, set (0 train, 1 query, 2 gallery),
camera, index; ``split_5_step.txt`` says which training identities belong to which learning step.
(``source.txt``, which says where each image came from, is not needed.)
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_shards.settings import InputError, Settings
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.listing import (
    Listed,
    files_in,
    folder_within,
    lines_of,
    not_named,
    read_listed,
)

_NAME = re.compile(r"([0-9]+)_([0-9])_([0-9]+)_[0-9]+\.(?:jpg|jpeg|png)", re.IGNORECASE)
_SETS = ("train", "query", "gallery")


class CrlPersonSettings(Settings):
    """CRL-person as unpacked."""

    path: Path
    """The folder `MIX`, or the one that holds it."""


CRL_PERSON_COUNTS = {"train": 59_706, "query": 11_351, "gallery": 19_576}


def read_crl_person(settings: CrlPersonSettings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """The images by set and name, from the item `start` on."""
    return read_listed(list_crl_person(settings), start)


def list_crl_person(settings: CrlPersonSettings) -> Iterator[Listed | Refusal]:
    """Every file in order. Raises InputError when a folder is missing.

    Training and test identities are numbered apart: the test ones are ``crl_person/test/0000``.
    """
    root = settings.path / "MIX" if (settings.path / "MIX").is_dir() else settings.path
    for number, folder in enumerate([folder_within(root, name) for name in _SETS]):
        for path in files_in(folder):
            key = f"crl_person/{folder.name}/{path.name}"
            name = _NAME.fullmatch(path.name)
            if name is None or int(name[2]) != number:
                yield not_named(path, key, f"0000_{number}_00_000.jpg")
                continue
            identity = identity_name(int(name[1]), folder.name)
            yield Listed(
                path=path,
                identity=identity,
                camera=f"crl_person/c{int(name[3])}",
                key=key,
                role=folder.name,
            )


def identity_name(number: int, part: str = "train") -> str:
    """The name of identity `number` of the training files or of another `part`."""
    return f"crl_person/{'' if part == 'train' else 'test/'}{number:04d}"


def read_split(path: Path) -> list[list[str]]:
    """The identity names of each learning step, from ``split_5_step.txt`` or its sibling.

    Raises InputError for a line that does not end in a list of numbers, and for an identity that
    is listed twice.
    """
    steps: list[list[str]] = []
    for number, line in enumerate(lines_of(path), start=1):
        found = re.search(r"(?:^|:|\[)\s*([0-9,\s]*[0-9])\s*\]?\s*$", line)
        if found is None:
            raise InputError(f"line {number} of {path} does not end in a list such as [3, 8, 12]")
        numbers = found[1].replace(",", " ").split()
        steps.append([identity_name(int(text)) for text in numbers])
    counts = Counter(name for step in steps for name in step)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise InputError(f"{path} lists {repeated[0]} more than once: take it from its publisher")
    return steps
