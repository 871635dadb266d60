"""ImageNet and whatever is laid out like it: one folder a class below `train` and `val`.

Validation images may also lie flat beside Kaggle's ``LOC_val_solution.csv``, whose lines
``ILSVRC2012_val_00048981,n03995372 85 1 499 272 ...`` name the class of each.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from data_shards.settings import InputError, Settings
from data_shards.sources import Refusal, SourceImage
from data_shards.sources.listing import (
    Listed,
    files_in,
    folder_within,
    lines_of,
    named_like_image,
    picture_of,
)

_SOLUTION = "LOC_val_solution.csv"


class ImagenetSettings(Settings):
    """ImageNet, a part of it, or another labelled image set of its layout."""

    path: Path
    """Folder with `train` and `val`."""
    name: str = "imagenet"
    """Put before the classes' names: ``imagenet/n01440764``."""


def imagenet_counts(settings: ImagenetSettings) -> dict[str, int]:
    """The published numbers of images; none of a set of another name."""
    return {"train": 1_281_167, "query": 50_000} if settings.name == "imagenet" else {}


def read_imagenet(settings: ImagenetSettings, start: int = 0) -> Iterator[SourceImage | Refusal]:
    """The images of `train` by class and name, then of `val` with role "query", from `start` on."""
    for path, identity, camera, key, role in islice(list_imagenet(settings), start, None):
        content = picture_of(path, key, identity)
        if isinstance(content, Refusal):
            yield content
        else:
            yield SourceImage(image=content, identity=identity, camera=camera, key=key, role=role)


def list_imagenet(settings: ImagenetSettings) -> Iterator[Listed]:
    """Every file in order.

    Raises InputError when `val` has a class that `train` lacks, or an image without a class.
    """
    train, val = (folder_within(settings.path, name) for name in ("train", "val"))
    classes = {folder.name for folder in _folders(train)}
    for folder in _folders(train):
        for path in files_in(folder):
            yield _item(settings.name, path, train, folder.name, "train")
    for path, label in _validation(settings.path, val):
        if label not in classes:
            raise InputError(f"{path} is of class {label!r}, which {train} has no folder for")
        yield _item(settings.name, path, val, label, "query")


def _item(source: str, path: Path, root: Path, label: str, role: str) -> Listed:
    key = f"{source}/{root.name}/{path.relative_to(root).as_posix()}"
    return Listed(path=path, identity=f"{source}/{label}", camera=root.name, key=key, role=role)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _validation(root: Path, val: Path) -> Iterator[tuple[Path, str]]:
    for folder in _folders(val):
        yield from ((path, folder.name) for path in files_in(folder))
    loose = [path for path in files_in(val) if named_like_image(path) or not path.suffix]
    if not loose:
        return
    listed = next((p / _SOLUTION for p in (root, val) if (p / _SOLUTION).exists()), None)
    if listed is None:
        raise InputError(
            f"{val} has images outside of class folders ({loose[0].name}): put them into folders, "
            f"or {_SOLUTION} beside them"
        )
    label = _labels(listed)
    for path in loose:
        if path.stem not in label:
            raise InputError(f"{listed} does not say the class of {path}")
        yield path, label[path.stem]


def _labels(listed: Path) -> dict[str, str]:
    """The class of each image by its name without ending: the first word after the comma."""
    labels = {}
    for line in lines_of(listed)[1:]:
        name, _, boxes = line.partition(",")
        if not boxes.split():
            raise InputError(f"{listed} has the line {line!r}, without a class")
        labels[name] = boxes.split()[0]
    return labels
