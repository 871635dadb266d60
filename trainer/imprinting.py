"""Imprinted rows: what new identities' rows begin as, in place of random ones (LUCIR's code)."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainer.methods.wants import Want


@dataclass(frozen=True)
class Imprinted(Want):
    """Rows for a step's new identities, of a recipe that starts with them. No Term looks at them:
    they are part of the state before the first iteration."""


def imprinted(means: NDArray[np.float32], old_rows: torch.Tensor) -> NDArray[np.float32]:
    """The rows [n, d] of identities with `means` [n, d] of their images' unit embeddings: in the
    direction of the mean, and as long as the `old_rows` [C, d] are on average."""
    length = torch.linalg.vector_norm(old_rows.double(), dim=1).mean()
    rows = F.normalize(torch.from_numpy(means).double()) * length
    return rows.float().numpy()
