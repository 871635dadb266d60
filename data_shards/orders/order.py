"""The order of training samples: pure functions of (seed, position).

The stream of samples is cut into global batches of a fixed size, and each rank takes a slice of
every batch. What happens to a sample therefore does not depend on the number of ranks, and the
state of an order is one integer.
"""

from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_shards.counter_rng import Permutation, stream_key
from data_shards.orders.block_order import BlockOrder
from data_shards.orders.identity_order import IdentityOrder
from data_shards.settings import Settings

Ids = NDArray[np.int64]


class UniformSettings(Settings):
    """Every epoch has every sample once, shuffled over the whole dataset."""

    kind: Literal["uniform"] = "uniform"
    """`uniform`: every epoch has every sample once, shuffled over the whole dataset."""


class IdentitySettings(Settings):
    """Batches of P identities × K images."""

    kind: Literal["identities"]
    """`identities`: batches of P identities × K images, every identity equally often."""
    images_per_identity: int = Field(default=4, ge=1)
    """K; `training.batch` must be a multiple of it."""


class BlockSettings(Settings):
    """Shuffles within windows of shards."""

    kind: Literal["blocks"]
    """`blocks`: shuffled shards, and samples shuffled within windows of them: for remote datasets
    that are larger than the cache."""
    window: int = Field(default=16, ge=1)
    """Most shards whose samples are mixed; the cache must hold three windows, or more."""


OrderSettings = Annotated[
    UniformSettings | IdentitySettings | BlockSettings, Field(discriminator="kind")
]
"""Settings of one of the orders, told apart by `kind`."""


class Order(Protocol):
    """An endless stream of samples by position."""

    def epoch(self, positions: Ids) -> Ids:
        """A number for each position ([m]) that differs whenever a sample comes again."""

    def at(self, positions: Ids, skipped: Ids | int = 0) -> Ids:
        """The samples at `positions` ([m]), or the `skipped`-th replacement of each."""

    def stride(self, left_out: int) -> int:
        """How far to advance `skipped` to replace a suspect, for `left_out` suspects in all."""

    def shards_ahead(self, position: int) -> Ids:
        """The shards needed from `position` on, in the order of use; empty if any may be."""


def rank_slice(batch: int, rank: int, world: int) -> slice:
    """The part of a global batch of `batch` samples that `rank` of `world` takes."""
    return slice(rank * batch // world, (rank + 1) * batch // world)


class UniformOrder:
    """Samples in a new random order every epoch."""

    def __init__(self, samples: Ids, seed: int) -> None:
        if len(samples) == 0:
            raise ValueError("an order needs at least one sample")
        self._samples = samples
        self._seed = seed

    def epoch(self, positions: Ids) -> Ids:
        """The epoch of each position ([m])."""
        return positions // len(self._samples)

    def at(self, positions: Ids, skipped: Ids | int = 0) -> Ids:
        """The samples at `positions` + `skipped` ([m]). Each epoch has every sample once."""
        positions = positions + skipped
        out = np.empty(len(positions), dtype=np.int64)
        epochs, within = np.divmod(positions, len(self._samples))
        for e in np.unique(epochs).tolist():
            permutation = Permutation(len(self._samples), stream_key(self._seed, "epoch", e))
            here = epochs == e
            out[here] = self._samples[permutation(within[here])]
        return out

    def stride(self, left_out: int) -> int:
        """The number of positions from a suspect to its replacement, for `left_out` suspects.

        Suspects come in whole batches, so the next good sample would replace all of them.
        """
        return left_out

    def shards_ahead(self, position: int) -> Ids:
        """None: any shard may come at any time."""
        return np.empty(0, dtype=np.int64)


def make_order(
    settings: UniformSettings | IdentitySettings | BlockSettings,
    samples: Ids,
    identity: Ids,
    shard: NDArray[np.integer],
    batch: int,
    seed: int,
) -> Order:
    """Makes the order of `samples` ([n]) that `settings` describe, in global batches of `batch`.

    `identity` and `shard` hold one entry for each sample of the dataset. Raises ValueError when
    the samples or the batch size do not fit the order.
    """
    if settings.kind == "identities":
        images = settings.images_per_identity
        return IdentityOrder(
            samples=samples, identity=identity[samples], images=images, batch=batch, seed=seed
        )
    if settings.kind == "blocks":
        return BlockOrder(samples, shard[samples], settings.window, seed)
    return UniformOrder(samples, seed)
