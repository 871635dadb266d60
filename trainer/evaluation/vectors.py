"""Embeddings in a file, read in slices, so that they need not fit in memory."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

Ids = NDArray[np.int64]


class StoredVectors:
    """Vectors of chosen samples, in a chosen order, from a file with one row [d] a sample.

    A slice is a tensor [n, d]; only sliced rows are read. The object holds no vectors and no open
    file, so it is small enough to be sent to another process.
    """

    def __init__(self, file: Path, samples: Ids, normalised: bool) -> None:
        """`file` is .npy, fp32 [s, d]; its rows belong to `samples` [s], ascending.

        With `normalised`, vectors are scaled to length 1 when they are read.
        """
        self._file, self._samples, self._normalised = file, samples, normalised
        self._rows = np.arange(len(samples))

    def of(self, samples: Ids) -> "StoredVectors":
        """The vectors of `samples` ([n], any order, repetitions allowed, all in the file)."""
        chosen = StoredVectors(self._file, self._samples, self._normalised)
        chosen._rows = np.searchsorted(self._samples, samples)
        return chosen

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        stored = np.load(self._file, mmap_mode="r")
        vectors = torch.from_numpy(stored[self._rows[rows]])
        return torch.nn.functional.normalize(vectors) if self._normalised else vectors
