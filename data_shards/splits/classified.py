"""The test images of identities that are learned, by learning step: class-incremental learning."""

import numpy as np
from numpy.typing import NDArray

from data_shards.settings import InputError
from data_shards.sources import ROLES
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset

Ids = NDArray[np.int64]


def classified_samples(
    dataset: ShardDataset,
    settings: BenchmarkSettings,
    row: Ids,
    row_ends: tuple[int, ...],
    learned: Ids,
) -> tuple[Ids, ...]:
    """The samples to classify of each learning step's identities; none unless `settings` ask.

    `row` [identities of the dataset] is the classifier row of each or -1, and step t's rows end at
    `row_ends` [t]. Raises InputError when one of the identities `learned` has no such sample. Of
    identities that a model knew before, those that the dataset has are classified.
    """
    if settings.classified == "none":
        return ()
    asks = dataset.role == ROLES.index("query")
    samples = np.flatnonzero(asks & (row[dataset.identity] >= 0))
    without = np.setdiff1d(learned, dataset.identity[samples])
    if len(without):
        raise InputError(
            f"benchmark.classified = query needs an image with role query of every identity that "
            f"is learned, but {len(without):,} of {len(learned):,} have none, such as "
            f"{str(dataset.names[without[0]])!r}: import some, or write benchmark.classified=none"
        )
    step = np.searchsorted(row_ends, row[dataset.identity[samples]], side="right")
    return tuple(samples[step == t] for t in range(len(row_ends)))
