"""Which classes are alike: CIFAR-100's meta-classes, a user's own, or clusters of class means."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.settings import InputError
from trainer.evaluation.meta_classes import Ids
from untrusted.text_files import read_lines

CIFAR_100 = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
"""The classes of each of CIFAR-100's 20 meta-classes (Krizhevsky 2009)."""
_CIFAR_META = {name: meta for meta, names in CIFAR_100.items() for name in names.split()}


@dataclass(frozen=True)
class MetaClasses:
    """The meta-class of every class of a run."""

    source: str
    """Where they come from, for people."""
    of: Ids
    """[C] the meta-class of each classifier row."""
    groups: tuple[str, ...]
    """What each is called."""

    @classmethod
    def named(cls, source: str, classes: Sequence[str], meta: Mapping[str, str]) -> "MetaClasses":
        """Those of `classes` by name; numbered by their first class."""
        own = [meta[name] for name in classes]
        groups = tuple(dict.fromkeys(own))
        number = {group: place for place, group in enumerate(groups)}
        return cls(source, np.array([number[group] for group in own], dtype=np.int64), groups)

    def told(self, classes: Sequence[str]) -> dict[str, Any]:
        """It as the file has it."""
        members: list[list[str]] = [[] for _ in self.groups]
        for name, number in zip(classes, self.of.tolist(), strict=True):
            members[number].append(name)
        groups = [{"name": n, "classes": c} for n, c in zip(self.groups, members, strict=True)]
        return {"source": self.source, "groups": groups}


def of_cifar(classes: Sequence[str]) -> MetaClasses | None:
    """CIFAR-100's, where all of `classes` are its classes, such as ``cifar100/apple``."""
    fine = {name: name.rsplit("/", 1)[-1] for name in classes}
    if not all(own in _CIFAR_META for own in fine.values()):
        return None
    meta = {name: _CIFAR_META[own] for name, own in fine.items()}
    return MetaClasses.named("CIFAR-100's meta-classes", classes, meta)


def of_file(path: Path, classes: Sequence[str]) -> MetaClasses:
    """Those in a file of lines ``class,meta-class``; other classes may be in it, too.

    Raises InputError naming the line, or the class that it lacks.
    """
    meta: dict[str, str] = {}
    try:
        lines = list(csv.reader(read_lines(path, "--meta")))
    except csv.Error as error:
        raise InputError(f"--meta {path} is no CSV ({error}): write class,meta-class") from error
    for number, cells in enumerate(lines, 1):
        if not cells:
            continue
        if len(cells) != 2 or not all(cell.strip() for cell in cells):
            raise InputError(
                f"--meta {path}, line {number} has {len(cells)} cells: write class,meta-class"
            )
        name, own = (cell.strip() for cell in cells)
        if meta.setdefault(name, own) != own:
            raise InputError(
                f"--meta {path}, line {number} puts {name!r} into {own!r}, and a line before into "
                f"{meta[name]!r}: leave one of them out"
            )
    if lacking := [name for name in classes if name not in meta]:
        raise InputError(
            f"--meta {path} lacks {len(lacking):,} of the {len(classes):,} classes learned, such "
            f"as {lacking[0]!r}: add a line {lacking[0]},its meta-class"
        )
    return MetaClasses.named(path.name, classes, meta)
