"""CIFAR-100: 32×32 pictures of a hundred classes, from its binary or its Python files.

A record of `train.bin` and `test.bin` is the coarse label, the fine label and 3 × 1024 pixels, red
first, row by row. The Python files are pickles, of which only plain values are read; where both
are there the binary ones are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_shards.alignment import png
from data_shards.settings import InputError, Settings
from data_shards.sources import SourceImage
from data_shards.sources.listing import folder_within, lines_of
from data_shards.sources.pickles import Array, read_pickle

_ROLES = {"train": "train", "test": "query"}
_PIXELS, _SHAPE = 3072, (3, 32, 32)
_RECORD = 2 + _PIXELS


class CifarSettings(Settings):
    """CIFAR-100 as unpacked."""

    path: Path
    """`cifar-100-binary` or `cifar-100-python`, or the folder that holds one."""


CIFAR_COUNTS = {"train": 50_000, "query": 10_000}


def read_cifar(settings: CifarSettings) -> Iterator[SourceImage]:
    """The training images, then the test images with role "query", in the files' order, as PNG.

    An identity is a fine label. Raises InputError naming the file that is damaged.
    """
    root = settings.path
    if not any((root / name).exists() for name in ("train.bin", "train")):
        root = folder_within(root, "cifar-100-binary", "cifar-100-python")
    binary = (root / "train.bin").exists()
    names = lines_of(root / "fine_label_names.txt") if binary else _names(root / "meta")
    for part, role in _ROLES.items():
        path = root / f"{part}.bin" if binary else root / part
        labels, pixels = _binary(path) if binary else _python(path)
        if labels.size and not 0 <= labels.min() <= labels.max() < len(names):
            raise InputError(
                f"{path} has labels from {labels.min()} to {labels.max()}, but there are "
                f"{len(names)} label names: unpack the archive again"
            )
        for number, (label, values) in enumerate(zip(labels.tolist(), pixels, strict=True)):
            picture = Image.fromarray(values.reshape(_SHAPE).transpose(1, 2, 0))
            identity = f"cifar100/{names[label].strip()}"
            yield SourceImage(
                image=png(picture),
                identity=identity,
                camera=part,
                key=f"cifar100/{part}/{number:05d}",
                role=role,
            )


def _binary(path: Path) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Fine labels [n] and pixels [n, 3072]."""
    size = path.stat().st_size if path.exists() else 0
    if size == 0 or size % _RECORD:
        raise InputError(
            f"{path} has {size} bytes, which is no number of records of {_RECORD}: "
            "unpack the archive again"
        )
    records = np.memmap(path, np.uint8, "r").reshape(-1, _RECORD)
    return records[:, 1], records[:, 2:]


def _python(path: Path) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    labels, pixels = _members(path, "fine_labels", "data")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels):
        raise InputError(f"{path} holds no fine_labels: unpack the archive again")
    if not isinstance(pixels, Array) or pixels.code != "u1":
        raise InputError(f"{path} holds no data of bytes: unpack the archive again")
    if pixels.shape != (len(labels), _PIXELS):
        raise InputError(
            f"{path} has {len(labels)} labels for data of shape {pixels.shape}: "
            "unpack the archive again"
        )
    return np.array(labels), np.frombuffer(pixels.content, np.uint8).reshape(pixels.shape)


def _names(path: Path) -> list[str]:
    (names,) = _members(path, "fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise InputError(f"{path} holds no fine_label_names: unpack the archive again")
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def _members(path: Path, *keys: str) -> list[Any]:
    """The values of a pickled dictionary under `keys`, None where absent.

    Python 2 wrote the keys as bytes, Python 3 as text.
    """
    try:
        value = read_pickle(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: unpack the archive again") from error
    except ValueError as error:
        raise InputError(f"{path} was not read ({error}): unpack the archive again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no dictionary: unpack the archive again")
    return [value.get(key, value.get(key.encode())) for key in keys]
