"""Whether a generator in training is still worth training."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.counter_rng import stream_key
from trainer.replay.wgan import ConditionalGenerator

Divergence = Literal["loss", "weights", "collapsed", "scattered"]
EXPLAINED: dict[Divergence, str] = {
    "loss": "a loss is not finite",
    "weights": "the weights are not finite",
    "collapsed": "generated features hardly differ from each other",
    "scattered": "generated features are scattered far wider than real ones",
}
_CLASSES, _DRAWS = 256, 8
"""How many classes are looked at, evenly spaced, and how many features of each are drawn."""


class Spread(NamedTuple):
    """Variances summed over a feature's dimensions."""

    within: float
    """Around the mean of the class."""
    overall: float
    """Around the mean of all."""


def spread(features: torch.Tensor, classes: torch.Tensor) -> Spread:
    """Of `features` [n, ...] with their `classes` [n] int64, unbiased, in float64.

    Classes with one feature tell nothing about what is within.
    """
    vectors = features.flatten(1).double()
    known, place = classes.unique(return_inverse=True)
    counts = place.bincount(minlength=len(known))
    means = vectors.new_zeros(len(known), vectors.shape[1]).index_add_(0, place, vectors)
    means /= counts[:, None]
    inner = (vectors - means[place]).square().sum()
    outer = (vectors - vectors.mean(dim=0)).square().sum()
    free = len(vectors) - len(known)
    return Spread(float(inner / free) if free else 0.0, float(outer / max(1, len(vectors) - 1)))


class Health:
    """Compares generated features of the step's classes with the real ones."""

    def __init__(
        self, features: torch.Tensor, classes: NDArray[np.int64], least: float, seed: int
    ) -> None:
        """The real ones [n, ...] with their `classes` [n]; `least` is the share of their variance
        below which generated ones count as collapsed. `seed` draws noise: the same at each look.
        """
        known = np.unique(classes)
        chosen = known[np.linspace(0, len(known) - 1, min(_CLASSES, len(known))).astype(np.int64)]
        held = np.flatnonzero(np.isin(classes, chosen))
        real = torch.from_numpy(classes[held]).to(features.device)
        self.real = spread(features[torch.from_numpy(held).to(features.device)], real)
        self._classes = torch.from_numpy(np.repeat(chosen, _DRAWS))
        self._least, self._seed = least, seed

    def look(self, generator: ConditionalGenerator, *, judge: bool) -> Divergence | None:
        """What is wrong with it; without `judge`, variances are not: at first they are small."""
        tensors = generator.state_dict().values()
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            return "weights"
        if not judge or not self._least:
            return None
        own = self.generated(generator)
        pairs = [(own.overall, self.real.overall)]
        if self.real.within > 0:  # an image a class says nothing of what is within one
            pairs.append((own.within, self.real.within))
        if any(drawn < self._least * real for drawn, real in pairs):
            return "collapsed"
        if not all(drawn <= real / self._least for drawn, real in pairs):  # NaN is not, either
            return "scattered"
        return None

    def generated(self, generator: ConditionalGenerator) -> Spread:
        """The spread of generated features."""
        device = next(generator.parameters()).device
        drawn = torch.Generator().manual_seed(int(stream_key(self._seed, "look") >> 1))
        noise = torch.randn(len(self._classes), generator.noise, generator=drawn)
        classes = self._classes.to(device)
        return spread(generator.features(classes, noise.to(device)), classes)
