"""What draws features of old identities, and which ones are drawn in which iteration."""

from typing import Protocol

import numpy as np
import torch

from data_shards.counter_rng import stream_key
from data_shards.orders.draws import rounds


class FeatureSource(Protocol):
    """Draws embeddings of the identities 0 <= row < `rows`, which earlier steps learned."""

    @property
    def rows(self) -> int:
        """How many identities it knows, by their classifier rows."""

    @property
    def noise(self) -> int:
        """How many standard normal numbers a feature is made of."""

    def features(self, classes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """[n, d] float32 embeddings of the identities `classes` [n] int64, each made of its `noise`
        [n, `self.noise`]: the same for the same numbers, whatever else is asked for with them."""


def replayed(
    source: FeatureSource, count: int, seed: int, iteration: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` features [count, d] for `iteration` with their identities [count] int64.

    A function of (seed, iteration) alone, so that every rank draws the same ones and a resumed
    training goes on with them. Every identity is drawn equally often, but for one. Normal numbers
    are torch's of the CPU: of a GPU's generator they would be others.
    """
    positions = np.arange(iteration * count, (iteration + 1) * count, dtype=np.int64)
    keys = np.full(count, stream_key(seed, "replayed identities"), dtype=np.uint64)
    known = np.full(count, source.rows, dtype=np.int64)
    classes = torch.from_numpy(rounds(known, count, keys, positions)).to(device)
    generator = torch.Generator().manual_seed(int(stream_key(seed, "replay", iteration) >> 1))
    noise = torch.randn(count, source.noise, generator=generator).to(device)
    return source.features(classes, noise), classes
