"""Shuffling within windows of shards, for datasets that are fetched shard by shard."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import Permutation, shuffled, stream_key

Ids = NDArray[np.int64]


class BlockOrder:
    """Every epoch shuffles the shards, cuts them into windows, and shuffles each window's samples.

    A window's shards are the only ones that are needed at a time.
    """

    def __init__(self, samples: Ids, shard: NDArray[np.integer], window: int, seed: int) -> None:
        """`samples` [n] and the `shard` [n] that each lies in; at most `window` shards a window.

        Raises ValueError when there is no sample.
        """
        if len(samples) == 0:
            raise ValueError("an order needs at least one sample")
        self._samples = samples[np.argsort(shard, kind="stable")]
        self._shards, self._count = np.unique(shard, return_counts=True)
        self._first = np.cumsum(self._count) - self._count
        edges = np.linspace(0, len(self._shards), -(-len(self._shards) // window) + 1)
        self._windows = list(pairwise(np.round(edges).astype(np.int64).tolist()))
        self._seed = seed

    def epoch(self, positions: Ids) -> Ids:
        """The epoch of each position ([m])."""
        return positions // len(self._samples)

    def at(self, positions: Ids, skipped: Ids | int = 0) -> Ids:
        """The samples at `positions` + `skipped` ([m]). Each epoch has every sample once."""
        positions = positions + skipped
        out = np.empty(len(positions), dtype=np.int64)
        epochs, within = np.divmod(positions, len(self._samples))
        for epoch in np.unique(epochs).tolist():
            order, starts = self._epoch(epoch)
            window = np.searchsorted(starts, within, side="right") - 1
            for number in np.unique(window[epochs == epoch]).tolist():
                here = (epochs == epoch) & (window == number)
                own = order[slice(*self._windows[number])]
                key = stream_key(self._seed, "window", epoch, number)
                at = Permutation(int(self._count[own].sum()), key)(within[here] - starts[number])
                ends = np.cumsum(self._count[own])
                shard = np.searchsorted(ends, at, side="right")
                offset = at - (ends - self._count[own])[shard]
                out[here] = self._samples[self._first[own][shard] + offset]
        return out

    def _epoch(self, epoch: int) -> tuple[Ids, Ids]:
        """The order of the shards in an epoch, and where in it each window starts."""
        everyone = np.arange(len(self._shards))
        order = shuffled(stream_key(self._seed, "shards", epoch), everyone)
        before = np.concatenate([[0], np.cumsum(self._count[order])])
        return order, before[[first for first, _ in self._windows]]

    def stride(self, left_out: int) -> int:
        """The number of positions from a suspect to its replacement, for `left_out` suspects.

        Suspects come in whole batches, so the next good sample would replace all of them.
        """
        return left_out

    def shards_ahead(self, position: int) -> Ids:
        """The shards of the window at `position` and of the next one, in the order of use."""
        epoch, within = divmod(position, len(self._samples))
        order, starts = self._epoch(epoch)
        number = int(np.searchsorted(starts, within, side="right")) - 1
        now = order[slice(*self._windows[number])]
        if number + 1 == len(self._windows):
            order, number = self._epoch(epoch + 1)[0], -1
        following = order[slice(*self._windows[number + 1])]
        return self._shards[np.concatenate([now, following])].astype(np.int64)
