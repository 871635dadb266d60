"""Verification: do two images show one identity? Accuracy by 10-fold cross-validation."""

import numpy as np
from numpy.typing import NDArray


def best_threshold(distance: NDArray[np.float64], same: NDArray[np.bool_]) -> float:
    """The threshold t that most pairs are on the right side of, same where distance < t.

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
