"""Verification: do two images show one identity? Accuracy by 10-fold cross-validation."""

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.evaluation.blocks import Vectors, squared_norms

_BLOCK = 8192


def squared_distances(left: Vectors, right: Vectors) -> NDArray[np.float64]:
    """[P] squared distances of pairs of vectors ([P, d] each), block by block.

    Raises InputError for NaN.
    """
    parts = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, len(left), _BLOCK):
        apart = left[start : start + _BLOCK] - right[start : start + _BLOCK]
        parts.append(squared_norms(apart, "pairs of").double())
    return torch.cat(parts).numpy()


def best_threshold(distance: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """The threshold t with the highest accuracy, where a pair is accepted if distance < t.

    Halfway between two neighbouring distances; the lowest of several equally good ones.
    """
    order = np.argsort(distance, kind="stable")
    ordered, truth = distance[order], same[order]
    right = np.concatenate([[0], np.cumsum(truth)]) + (~truth).sum()
    right = right - np.concatenate([[0], np.cumsum(~truth)])
    edges = np.concatenate([[ordered[0] - 1], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1]])
    split = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    return float(edges[np.argmax(np.where(split, right, -1))])


def ten_fold_accuracy(
    distance: NDArray[np.float64], same: NDArray[np.bool_], folds: NDArray[np.int64]
) -> float:
    """Mean accuracy over the folds, each with the threshold that is best on all others.

    `distance`, `same` and `folds` are [P]: LFW's protocol (CRL paper, Sec. 3).
    """
    accuracies = []
    for fold in np.unique(folds):
        held = folds == fold
        threshold = best_threshold(distance[~held], same[~held])
        accuracies.append(np.mean((distance[held] < threshold) == same[held]))
    return float(np.mean(accuracies))


def grid_accuracy(
    distance: NDArray[np.float64], same: NDArray[np.bool_], folds: NDArray[np.int64]
) -> float:
    """`ten_fold_accuracy` as public face tests compute it: thresholds 0, 0.01 ... 3.99 only.

    `distance` is squared, between vectors of length 1 (customarily the normalised sum of the
    embeddings of an image and of its mirror image); same where distance < threshold; the lowest of
    several equally good thresholds.
    """
    grid = np.arange(0, 4, 0.01)
    right = (distance[None] < grid[:, None]) == same  # [400, P]
    accuracies = []
    for fold in np.unique(folds):
        held = folds == fold
        chosen = np.argmax(right[:, ~held].mean(axis=1))
        accuracies.append(right[chosen, held].mean())
    return float(np.mean(accuracies))
