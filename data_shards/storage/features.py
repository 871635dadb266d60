"""MegaFace's feature files: one embedding each, as its evaluation programs read and write them.

Little-endian: four int32 (dimension, 1, 4 = bytes of a number, 5 = its type, float32), then the
numbers. A tree of them mirrors the tree of images: ``Al_B/1.png`` has ``Al_B/1.png_MODEL.bin``.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.settings import InputError
from data_shards.sources.listing import leads_outside
from untrusted.files import read_bytes

_HEADER = struct.Struct("<4i")
_COLUMNS, _BYTES, _FLOAT32 = 1, 4, 5
_MOST_BYTES = 1 << 24
_COLLECTIONS = ("facescrub/", "megaface/")
"""Prefixes of our keys that the benchmark's lists do not have."""


def file_ending(text: str) -> str:
    """Checks what a feature file's name appends to the image's. Raises InputError."""
    if not text or "/" in text:
        raise InputError(f"--features {text!r}: give what file names end in, such as _ours.bin")
    return text


def feature_name(key: str, ending: str) -> str:
    """The path of an image's feature file within a tree, from the image's key.

    Raises InputError when it would lead out of the tree.
    """
    for collection in _COLLECTIONS:
        key = key.removeprefix(collection)
    if leads_outside(key + ending):
        raise InputError(f"an image is called {key!r}, and its feature file would lie elsewhere")
    return key + ending


def write_feature(path: Path, embedding: NDArray[Any]) -> None:
    """Writes `embedding` ([d]) as a feature file; a crash may leave part of it."""
    header = _HEADER.pack(len(embedding), _COLUMNS, _BYTES, _FLOAT32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + embedding.astype("<f4").tobytes())


def read_feature(path: Path) -> NDArray[np.float32]:
    """The embedding [d] in a feature file.

    Raises InputError when it is missing, damaged or holds anything but finite float32 numbers.
    """
    try:
        content = read_bytes(path, _MOST_BYTES)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"feature file {path} cannot be read: {why}") from error
    if len(content) < _HEADER.size:
        raise InputError(f"{path} has {len(content)} bytes, too few for a feature file")
    dimension, *kind = _HEADER.unpack_from(content)
    if kind != [_COLUMNS, _BYTES, _FLOAT32] or len(content) != _HEADER.size + 4 * dimension:
        raise InputError(
            f"{path} is no feature file of {dimension} float32 numbers (kind {kind}, "
            f"{len(content)} bytes): write it again"
        )
    embedding = np.frombuffer(content, "<f4", offset=_HEADER.size).astype(np.float32)
    if not np.isfinite(embedding).all():
        raise InputError(f"{path} holds numbers that are not finite: write it again")
    return embedding
