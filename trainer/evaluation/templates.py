"""Templates: sets of images and video frames of one person, compared as one vector (IJB)."""

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.settings import InputError
from trainer.evaluation.blocks import Vectors, squared_norms

Ids = NDArray[np.int64]
_BLOCK = 8192


def template_vectors(
    vectors: Vectors, template: Ids, medium: Ids
) -> tuple[Ids, NDArray[np.float32]]:
    """The templates, ascending, and a vector of length 1 for each ([t, d]).

    Row i of `vectors` [n, d] belongs to `template` i and `medium` i (a photograph, or all frames of
    one video). It is not normalised: as in IJB's usual evaluation, an image with a longer embedding
    weighs more. A template's vector is the mean over each medium's images, summed over its media,
    L2-normalised. Raises InputError for NaN, and for a template of length 0.
    """
    names, own = np.unique(template, return_inverse=True)
    media = np.stack([own, medium])
    _, group, count = np.unique(media, axis=1, return_inverse=True, return_counts=True)
    weight = torch.from_numpy(1 / count[group])
    total: torch.Tensor | None = None
    for start in range(0, len(template), _BLOCK):
        part = slice(start, start + _BLOCK)
        rows = vectors[part]
        squared_norms(rows, "template")
        if total is None:
            total = torch.zeros(len(names), rows.shape[1], dtype=torch.float64)
        total.index_add_(0, torch.from_numpy(own[part]), rows * weight[part, None])
    assert total is not None, "no template has an image"
    lengths = total.norm(dim=1)
    if (lengths == 0).any():
        raise InputError(
            f"template {names[int(lengths.argmin())]} has a vector of length 0: its images' "
            "embeddings cancel out or are 0, so the model tells nothing"
        )
    return names, (total / lengths[:, None]).float().numpy()


def pair_scores(vectors: NDArray[np.float32], left: Ids, right: Ids) -> NDArray[np.float32]:
    """Cosines [p] of pairs of rows of `vectors` [t, d], each of length 1, block by block."""
    scores = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores[part] = np.einsum("pd,pd->p", vectors[left[part]], vectors[right[part]])
    return scores
