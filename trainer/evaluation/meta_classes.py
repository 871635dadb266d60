"""Errors among classes that fall into meta-classes, such as CIFAR-100's twenty: within one an image
is confused, across them an old class is forgotten (discriminative distillation, Table 2).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ErrorSplit:
    """The errors of one model on test images of all classes so far: each is of one part."""

    images: int
    confusion: int
    """Images, of old and new classes, that are taken for a wrong class of their meta-class."""
    forgetting: int
    """Images of old classes, learned in an earlier step, that are taken for a class of another
    meta-class."""
    other: int
    """Images of new classes, learned in the newest step, that are taken for a class of another
    meta-class. The paper counts them as neither; here they are told, so that the parts add up."""

    @property
    def wrong(self) -> int:
        """All errors."""
        return self.confusion + self.forgetting + self.other


def split_errors(predicted: Ids, label: Ids, meta: Ids, old: int) -> ErrorSplit:
    """The errors of classes `predicted` [n] for images of classes `label` [n].

    `meta` [C] is the meta-class of each class; classes below `old` are of earlier steps.
    """
    wrong, within = predicted != label, meta[predicted] == meta[label]
    across = wrong & ~within
    return ErrorSplit(
        images=len(label),
        confusion=int((wrong & within).sum()),
        forgetting=int((across & (label < old)).sum()),
        other=int((across & (label >= old)).sum()),
    )


def clustered(points: NDArray[np.floating], count: int) -> Ids:
    """[n] which of `count` clusters each of `points` [n, d] is in, numbered by their first points.

    Agglomerative: at first each point is a cluster, and then the two are merged that add the least
    to the squared distances from the clusters' means (Ward 1963), of equal ones those with the
    first points. Time n^3, memory n^2. Raises ValueError unless 1 <= count <= n.
    """
    total = len(points)
    if not 1 <= count <= total:
        raise ValueError(f"{total} points cannot be in {count} clusters: give 1 to {total}")
    vectors = points.astype(np.float64)
    cluster, sizes = np.arange(total), np.ones(total)
    cost = np.empty((total, total))
    for number, vector in enumerate(vectors):
        cost[number] = ((vectors - vector) ** 2).sum(axis=1) / 2
    np.fill_diagonal(cost, np.inf)
    for _ in range(total - count):
        # the matrix is symmetric, so that the first of equal entries has the first points
        left, right = divmod(int(cost.argmin()), total)
        both = sizes[left] + sizes[right]
        # Lance and Williams 1967: Ward's cost of the union from those of its parts
        merged = (sizes[left] + sizes) * cost[left] + (sizes[right] + sizes) * cost[right]
        merged = (merged - sizes * cost[left, right]) / (both + sizes)
        merged[left] = np.inf
        cost[left], cost[:, left] = merged, merged
        cost[right], cost[:, right] = np.inf, np.inf
        sizes[left] = both
        cluster[cluster == right] = left
    return np.unique(cluster, return_inverse=True)[1].astype(np.int64)
