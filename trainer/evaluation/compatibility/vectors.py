"""Makes the vectors of two models comparable: the rule for different dimensions, and the norm."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.settings import InputError

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Embedded:
    """A model's embeddings of some samples."""

    samples: Ids
    """[n] dataset rows, ascending."""
    vectors: NDArray[np.float32]
    """[n, d] not normalised."""

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        return self.vectors.shape[1]

    def of(self, samples: Ids) -> torch.Tensor:
        """The vectors [m, d] of `samples` [m], which must be among its own. Raises InputError."""
        rows = np.searchsorted(self.samples, samples)
        held = np.minimum(rows, len(self.samples) - 1)
        if (missing := self.samples[held] != samples).any():
            raise InputError(
                f"{int(missing.sum())} of {len(samples)} samples have no embedding (the first is "
                f"{samples[missing][0]}): embed them anew"
            )
        return torch.from_numpy(self.vectors[rows])


def comparable(vectors: torch.Tensor, dimension: int, normalised: bool) -> torch.Tensor:
    """The first `dimension` elements of `vectors` [n, d], then of length 1 where `normalised`.

    The longer of two models' vectors meets the shorter with as many leading elements (BCT paper,
    different feature dimensions).
    """
    leading = vectors[:, :dimension]
    return torch.nn.functional.normalize(leading) if normalised else leading
