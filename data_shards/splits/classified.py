"""The test images of identities that are learned: class-incremental learning."""

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import shuffled, stream_key
from data_shards.settings import InputError
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.drawing import by_identity, views_of, with_role
from data_shards.storage.dataset import ShardDataset

Ids = NDArray[np.int64]
_SHARE = 0.2
"""Of each identity's cameras, or images, where training images are held out."""


def classified_samples(
    dataset: ShardDataset, settings: BenchmarkSettings, row: Ids, learned: Ids
) -> Ids:
    """The samples to classify, ascending; none unless `settings` ask.

    `row` [identities of the dataset] is the classifier row of each or -1. Raises InputError when
    one of the identities `learned` has no such sample. Of identities that a model knew before,
    those that the dataset has are classified.
    """
    if settings.classified == "none":
        return np.empty(0, dtype=np.int64)
    known = row[dataset.identity] >= 0
    if settings.classified == "held-out":
        return _held_out(dataset, settings, np.flatnonzero(with_role(dataset, "train") & known))
    samples = np.flatnonzero(with_role(dataset, "query") & known)
    without = np.setdiff1d(learned, dataset.identity[samples])
    if len(without):
        raise InputError(
            f"benchmark.classified = query needs an image with role query of every identity that "
            f"is learned, but {len(without):,} of {len(learned):,} have none, such as "
            f"{str(dataset.names[without[0]])!r}: import some, or write benchmark.classified=none"
        )
    return samples


def _held_out(dataset: ShardDataset, settings: BenchmarkSettings, trained: Ids) -> Ids:
    """A share of each identity's samples among `trained`; no camera's are in both parts.

    Raises InputError where that leaves an identity nothing to train on.
    """
    view, held = views_of(dataset, settings), [np.empty(0, dtype=np.int64)]
    for identity, own in by_identity(dataset, trained).items():
        views = shuffled(stream_key(settings.seed, "held out", identity), np.unique(view[own]))
        count = max(1, round(_SHARE * len(views)))
        if count == len(views):
            raise InputError(
                "benchmark.classified = held-out holds images of one camera out, or one image "
                f"where none is known, and {str(dataset.names[identity])!r} has no others to train "
                "on: leave it out of the dataset, or write benchmark.classified=query"
            )
        held.append(own[np.isin(view[own], views[:count])])
    return np.sort(np.concatenate(held))
