"""Which sample comes when, and how it is augmented: pure functions of (seed, epoch, position).

The stream of samples is cut into global batches of a fixed size, and each rank takes a slice of
every batch. What happens to a sample therefore does not depend on the number of ranks, and the
state of an order is one integer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_shards.counter import Permutation, integers, stream_key, uniform
from data_shards.settings import Settings

Ids = NDArray[np.int64]


class AugmentationSettings(Settings):
    """Random changes to training images, decided by the order and applied by the pipeline."""

    flip: bool = False
    """Mirror half of the images, at random. Never for characters."""
    shift: int = 0
    """Largest random shift in either direction, pixels."""
    fill: int = 0
    """Grey level (0-255) of what a shift uncovers."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to each of b images."""

    flipped: NDArray[np.bool_]
    """[b] mirrored left to right."""
    shift: NDArray[np.int64]
    """[b, 2] pixels down and right."""


def augment(settings: AugmentationSettings, seed: int, epoch: Ids, samples: Ids) -> Augmentation:
    """The augmentation of `samples` ([b]), each in its `epoch` ([b])."""
    count = len(samples)
    flipped, shift = np.zeros(count, dtype=bool), np.zeros((count, 2), dtype=np.int64)
    for e in np.unique(epoch).tolist():
        here = epoch == e
        own = samples[here]
        if settings.flip:
            flipped[here] = uniform(stream_key(seed, "flip", e), own) < 0.5
        for axis in range(2) if settings.shift else ():
            key = stream_key(seed, "shift", e, axis)
            shift[here, axis] = integers(key, own, -settings.shift, settings.shift)
    return Augmentation(flipped, shift)


def rank_slice(batch: int, rank: int, world: int) -> slice:
    """The part of a global batch of `batch` samples that `rank` of `world` takes."""
    return slice(rank * batch // world, (rank + 1) * batch // world)


class Order:
    """Samples in a new random order every epoch, as an endless stream of positions."""

    def __init__(self, samples: Ids, seed: int) -> None:
        if len(samples) == 0:
            raise ValueError("an order needs at least one sample")
        self._samples = samples
        self._seed = seed

    def epoch(self, positions: Ids) -> Ids:
        """The epoch of each position ([m])."""
        return positions // len(self._samples)

    def at(self, positions: Ids) -> Ids:
        """The samples at `positions` ([m]) of the stream. Each epoch has every sample once."""
        out = np.empty(len(positions), dtype=np.int64)
        epochs, within = np.divmod(positions, len(self._samples))
        for e in np.unique(epochs).tolist():
            permutation = Permutation(len(self._samples), stream_key(self._seed, "epoch", e))
            here = epochs == e
            out[here] = self._samples[permutation(within[here])]
        return out
