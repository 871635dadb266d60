"""Synthesised rows of backward-compatible training: class means of the old model's embeddings
(Sec. 2.5 of the BCT paper).

Each shard's sums are in float64 and merged in the order of the shards, so that the result depends
neither on the number of processes nor on interruptions.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.settings import InputError
from trainer.arrays import read_arrays, write_arrays
from trainer.heads.rows import ShardedRows, own_ids

Ids = NDArray[np.int64]
Sums = tuple[Ids, NDArray[np.float64], Ids]
"""Classifier rows [m] ascending, the sums of their embeddings [m, d], and their numbers [m]."""


def class_sums(embeddings: NDArray[np.float32], classes: Ids) -> Sums:
    """The sums of `embeddings` [n, d] by their `classes` [n]."""
    rows, place = np.unique(classes, return_inverse=True)
    sums = np.zeros((len(rows), embeddings.shape[1]))
    np.add.at(sums, place, embeddings.astype(np.float64))
    return rows, sums, np.bincount(place, minlength=len(rows)).astype(np.int64)


def class_means(parts: Iterable[Sums], first: int, last: int) -> NDArray[np.float32]:
    """The mean embedding of each row first <= r < last, [last - first, d], from shards' sums.

    Raises InputError for a row without an image.
    """
    # in the order of `parts`: sums in another order would round differently
    total, counts = None, np.zeros(last - first, dtype=np.int64)
    for rows, sums, numbers in parts:
        if total is None:
            total = np.zeros((last - first, sums.shape[1]))
        total[rows - first] += sums
        counts[rows - first] += numbers
    if total is None or (counts == 0).any():
        lacking = first + int(np.argmin(counts))
        raise InputError(f"classifier row {lacking} has no image to synthesise it from")
    return (total / counts[:, None]).astype(np.float32)


def write_sums(path: Path, sums: Sums, model: str) -> None:
    """Writes one shard's sums, with the fingerprint of the embedding `model`."""
    write_arrays(path, dict(zip(("rows", "sums", "counts"), sums, strict=True)), model)


def read_sums(path: Path, model: str) -> Sums:
    """Reads one shard's sums. Raises InputError when they are damaged or of another model."""
    tensors = read_arrays(path, model, ("rows", "sums", "counts"))
    return tensors["rows"], tensors["sums"], tensors["counts"]


def write_class_means(path: Path, means: NDArray[np.float32], model: str) -> None:
    """Writes the means [n, d] of the identities without a row in the old model, by row."""
    write_arrays(path, {"means": means}, model)


def read_class_means(path: Path, model: str) -> torch.Tensor:
    """Reads the means [n, d]. Raises InputError when they are damaged or of another model."""
    return torch.from_numpy(read_arrays(path, model, ("means",))["means"])


def with_class_means(rows: ShardedRows, means: torch.Tensor) -> ShardedRows:
    """Frozen `rows` followed by `means` [n, d], which are equal on every rank."""
    last = rows.last + len(means)
    new = own_ids(rows.last, last, rows.ranks) - rows.last
    weight = torch.cat([rows.weight.detach(), means[new]])
    return ShardedRows(rows.first, last, weight, rows.ranks).requires_grad_(False)
