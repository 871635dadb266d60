"""MegaFace's feature files: one embedding each, as its evaluation programs read and write them.

Little-endian: four int32 (dimension, 1, 4 = bytes of a number, 5 = its type, float32), then the
numbers.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.files import write_atomically
from data_shards.settings import InputError

_HEADER = struct.Struct("<4i")
_COLUMNS, _BYTES, _FLOAT32 = 1, 4, 5


def write_feature(path: Path, embedding: NDArray[Any]) -> None:
    """Writes `embedding` ([d]) as a feature file."""
    header = _HEADER.pack(len(embedding), _COLUMNS, _BYTES, _FLOAT32)
    write_atomically(path, header + embedding.astype("<f4").tobytes())


def read_feature(path: Path) -> NDArray[np.float32]:
    """The embedding [d] in a feature file.

    Raises InputError when it is damaged or holds anything but finite float32 numbers.
    """
    content = path.read_bytes()
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
