"""How embeddings of identities without images have moved: estimated from those that have images.

A stored mean is of an earlier model's embeddings, and each learning step moves embeddings. What a
step did to those of its own images, by the models before and after it, is fitted by an affine map,
and the stored means are moved by that map: learned drift compensation (Gomez-Villa et al. 2024,
"Exemplar-free continual representation learning via learnable drift compensation"), whose linear
projector is here solved for in closed form. Covariances stay: a fitted map is narrower than what it
was fitted to, by what it leaves unexplained.

Of n embeddings z [d] and what was added to each, m = z' - z, the map is

    m(z) = mean(m) + (z - mean(z)) B,   B = (S + v I)^-1 sum (z - mean(z))' (m - mean(m)),

where S is the scatter of z around its mean and v its trace / n: no movement but the mean one counts
as d images do, as in `gaussian`. So few images say little, and with many nothing remains of it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

NEEDS = ("images", "sums", "products")
"""The arrays of `movement`."""


def movement(
    before: NDArray[np.float32], after: NDArray[np.float32]
) -> dict[str, NDArray[np.float64]]:
    """What `moved` needs of the embeddings [n, d] of the same images `before` and `after` a step,
    to be added up over units of work, in float64: their number [1], the sums [2, d] of embeddings
    before and of their movements, and the products [2, d, d] of embeddings with both."""
    z = before.astype(np.float64)
    both = np.stack([z, after.astype(np.float64) - z])
    return {
        "images": np.array([len(z)], dtype=np.float64),
        "sums": both.sum(axis=1),
        "products": z.T @ both,
    }


def moved(means: torch.Tensor, parts: Iterable[Mapping[str, NDArray[Any]]]) -> torch.Tensor:
    """The float32 `means` [C, d] where the `movement` in `parts` took them.

    `parts` are at least one, and added in their order: sums in another one would round differently.
    """
    held = list(parts)
    (images,), (z, movements), (zz, zm) = (
        np.sum([part[name] for part in held], axis=0) for name in NEEDS
    )
    if not images:
        return means
    center, shift = z / images, movements / images
    scatter = zz - images * np.outer(center, center)
    least = np.finfo(np.float64).tiny  # of embeddings that are all the same
    prior = max(least, np.trace(scatter) / images) * np.eye(len(center))
    by = np.linalg.solve(scatter + prior, zm - images * np.outer(center, shift))
    placed = means.double().numpy()
    return torch.from_numpy(placed + shift + (placed - center) @ by).float()
