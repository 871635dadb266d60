"""Which images of an identity are kept as its exemplars: ordered lists, so that fewer of them are
the first of the list."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from data_shards.counter_rng import bits, stream_key

Ids = NDArray[np.int64]


def herding(embeddings: NDArray[np.floating], count: int) -> Ids:
    """The places of `count` of n images, in the order in which they are picked: [min(count, n)].

    Each pick brings the mean of those picked, of unit length each, nearest to the mean of all
    (iCaRL, Alg. 4), and no image is picked twice. Of equally good ones the first is taken, so the
    result depends on the order of `embeddings` [n, d] in ties alone.
    """
    vectors = embeddings.astype(np.float64)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    mean = vectors.mean(axis=0)
    lengths = np.square(vectors).sum(axis=1)
    chosen = np.empty(min(count, len(vectors)), dtype=np.int64)
    left, total = np.ones(len(vectors), dtype=bool), np.zeros_like(mean)
    for number in range(len(chosen)):
        # |mean - (total + v) / k|^2 grows with |v|^2 + 2 v (total - k mean), k = number + 1
        distance = lengths + 2 * (vectors @ (total - (number + 1) * mean))
        chosen[number] = np.argmin(np.where(left, distance, np.inf))
        left[chosen[number]] = False
        total += vectors[chosen[number]]
    return chosen


def drawn(keys: NDArray[np.uint64], count: int, seed: int) -> Ids:
    """The places of `count` of n images at random: [min(count, n)].

    Which ones depends on `seed` and each image's own hash among `keys` [n], not on their order.
    """
    return np.argsort(bits(stream_key(seed, "exemplar draw"), keys), kind="stable")[:count]


def balanced(classes: Ids, keys: NDArray[np.uint64], seed: int) -> Ids:
    """The places, ascending, of as many of each class's images as the smallest class has.

    `classes` [n] are theirs; which ones are taken depends on `seed` and `keys` [n], as in `drawn`.
    """
    own = [np.flatnonzero(classes == one) for one in np.unique(classes)]
    count = min(map(len, own))
    return np.sort(np.concatenate([p[drawn(keys[p], count, seed)] for p in own]))


def mean_directions(views: Sequence[torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """[C, d] each class's mean of unit length, from embeddings [n, d] of its images in one or more
    `views`, each embedding made of unit length (iCaRL, Alg. 1), and the classes `rows` [n].

    Raises ValueError for a class without an image.
    """
    vectors = torch.stack([F.normalize(view.double()) for view in views]).sum(dim=0)
    sums = vectors.new_zeros(int(rows.max()) + 1, vectors.shape[1]).index_add_(0, rows, vectors)
    empty = (torch.bincount(rows, minlength=len(sums)) == 0).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(f"class {empty[0]} has no exemplar")
    return F.normalize(sums).float()
