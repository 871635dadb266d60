"""The protocol verification (LFW and its relatives): the pairs of the table `pairs`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from trainer.evaluation.roc import roc
from trainer.evaluation.test_sets.common import Ids, Spread, columns
from trainer.evaluation.vectors import StoredVectors
from trainer.evaluation.verification import grid_accuracy, squared_distances


class Verification:
    """10-fold accuracy, and TAR at FAR over all pairs."""

    normalised = True

    def __init__(self, dataset: ShardDataset) -> None:
        left, right, same, fold = columns(dataset.table("pairs"), "left", "right", "same", "fold")
        there = (left >= 0) & (right >= 0)
        self._left, self._right = left[there], right[there]
        self._same, self._fold = same[there], fold[there]
        self._refused = int((~there).sum())
        if len(np.unique(self._fold)) < 2 or len(np.unique(self._same)) < 2:
            raise InputError(
                f"the pairs of {dataset.location} need two folds and both kinds: give more pairs"
            )

    def samples(self) -> dict[str, Ids]:
        return {"dataset": np.unique(np.concatenate([self._left, self._right]))}

    def measure(self, vectors: Mapping[str, StoredVectors], spread: Spread) -> dict[str, Any]:
        of = vectors["dataset"].of
        distance = squared_distances(of(self._left), of(self._right))
        curve = roc(-distance, self._same)
        return {
            "accuracy": grid_accuracy(distance, self._same, self._fold),
            "tar": curve.measured(),
            "roc": curve.curve(),
            "folds": len(np.unique(self._fold)),
            "pairs": len(distance),
            "pairs_of_refused_images": self._refused,
        }
