"""The conditional Wasserstein GAN that replays features (generative feature replay, Sec. 4.1 and
D): a generator and a critic of two hidden layers, one of each for all classes so far.

What a network knows of a class enters in one of two ways. As a one-hot vector, as the paper's: its
part of the first linear layer is a column a class, which is kept here as a row of a table, so that
new classes are new rows and nothing that was computed for old ones changes, not even its rounding.
Or as the mean of the class's features, through a linear layer that is as large for one class as for
a hundred thousand: a new identity adds its mean and not a weight.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from data_shards.counter_rng import stream_key

_SLOPE = 0.2
"""Of the leaky ReLUs where they are negative (paper, D)."""
_DEVIATION = 0.02
"""Of the weights that the generator's last layer begins with."""


Ends = Literal["none", "relu", "tanh"]
"""What a generator ends in. relu: where what it draws is behind one, too; tanh: for pixels from -1
to 1."""


class NetworkShape(Protocol):
    """What of a pair of networks does not change while classes arrive."""

    @property
    def features(self) -> tuple[int, ...]:
        """The shape of what the generator draws and the critic judges."""

    def generator(self, rows: int, means: "ClassMeans | None") -> "ConditionalGenerator":
        """A new one for `rows` classes. Raises ValueError where `means` are given and class means
        are not what it knows of classes, or the other way round."""

    def critic(self, rows: int, means: "ClassMeans | None") -> nn.Module:
        """Likewise: what it is given and its class → a score. What it has for each class, and no
        more, is in a module ``of_class``."""

    def model_dump(self) -> dict[str, Any]:
        """As JSON values."""


class WganShape(BaseModel):
    """Of networks of features: two hidden layers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimension: int = Field(ge=1, lt=1 << 20)
    """d, length of a feature."""
    noise: int = Field(ge=1, lt=1 << 20)
    """Length of z."""
    width: int = Field(ge=1, lt=1 << 20)
    """Units of each hidden layer."""
    class_input: Literal["one-hot", "mean"]
    relu: bool
    """Whether features are those behind a ReLU, and so are the generated ones."""

    @property
    def features(self) -> tuple[int, ...]:
        """See `NetworkShape`."""
        return (self.dimension,)

    def generator(self, rows: int, means: "ClassMeans | None") -> "Generator":
        """See `NetworkShape`."""
        if (self.class_input == "mean") != (means is not None):
            raise ValueError(f"class_input = {self.class_input}, but means are {means}")
        return Generator(self, rows, means)

    def critic(self, rows: int, means: "ClassMeans | None") -> "Critic":
        """See `NetworkShape`."""
        return Critic(self, rows, means)


class ClassRows(nn.Module):
    """A linear layer of one-hot class vectors: classes [n] int64 → [n, width]."""

    def __init__(self, rows: int, width: int, bound: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width).uniform_(-bound, bound))

    @property
    def rows(self) -> int:
        return len(self.weight)

    def forward(self, classes: torch.Tensor) -> torch.Tensor:
        return F.embedding(classes, self.weight)


class _OfMeans(nn.Module):
    """A linear layer of class means: classes [n] int64 → [n, width].

    Means are shifted and scaled as those of the first classes were to have mean 0 and mean square
    1, then and ever after: the function of old classes would change with anything else.
    """

    def __init__(self, means: "ClassMeans", width: int, bound: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, means.dimension).uniform_(-bound, bound))
        self.means: torch.Tensor
        # not with its weights: both networks have the same ones
        self.register_buffer("means", means.scaled, persistent=False)

    @property
    def rows(self) -> int:
        return len(self.means)

    def forward(self, classes: torch.Tensor) -> torch.Tensor:
        return F.linear(self.means[classes], self.weight)


@dataclass(frozen=True)
class ClassMeans:
    """What networks with `class_input` mean know of classes."""

    means: torch.Tensor
    """[C, d] float32, of each class's features when it was learned."""
    shift: torch.Tensor
    """[d]"""
    scale: torch.Tensor
    """[1], > 0."""

    @classmethod
    def of(cls, means: torch.Tensor) -> "ClassMeans":
        """Those of the first classes, [C, d]."""
        shift = means.mean(dim=0)
        scale = (means - shift).square().mean().sqrt().view(1)
        # one class has no spread of its own
        return cls(means, shift, torch.where(scale > 0, scale, torch.ones_like(scale)))

    def followed_by(self, means: torch.Tensor) -> "ClassMeans":
        """With new classes' means [n, d] behind them."""
        return ClassMeans(torch.cat([self.means, means]), self.shift, self.scale)

    @property
    def dimension(self) -> int:
        """d"""
        return self.means.shape[1]

    @property
    def scaled(self) -> torch.Tensor:
        """[C, d] as networks see them."""
        return (self.means - self.shift) / self.scale


class ConditionalGenerator(nn.Module):
    """G: class c and noise z → what a critic judges. It is a
    `trainer.replay.source.FeatureSource`."""

    of_class: "ClassRows | _OfMeans"
    """All that it knows of each class."""

    def __init__(self, noise: int) -> None:
        super().__init__()
        self.noise = noise
        """Length of z."""

    @property
    def rows(self) -> int:
        """How many classes it knows."""
        return self.of_class.rows

    @torch.no_grad()
    def features(self, classes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """classes [n] int64, noise [n, `noise`] → what it makes of them, without autograd."""
        out: torch.Tensor = self(classes, noise)
        return out


class Generator(ConditionalGenerator):
    """Of features [d]."""

    def __init__(self, shape: WganShape, rows: int, means: ClassMeans | None) -> None:
        super().__init__(shape.noise)
        self._relu = shape.relu
        classes = rows if means is None else means.dimension
        # the bound of one linear layer for [z, class]
        bound = 1 / math.sqrt(shape.noise + classes)
        self.of_noise = nn.Linear(shape.noise, shape.width)
        for parameter in self.of_noise.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self.of_class = _class_layer(rows, means, shape.width, bound)
        self.hidden = nn.Linear(shape.width, shape.width)
        self.last = nn.Linear(shape.width, shape.dimension)
        nn.init.normal_(self.last.weight, std=_DEVIATION)
        nn.init.zeros_(self.last.bias)

    def forward(self, classes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """classes [n] int64, noise [n, `noise`] → features [n, d], with autograd."""
        first = F.leaky_relu(self.of_noise(noise) + self.of_class(classes), _SLOPE)
        features: torch.Tensor = self.last(F.leaky_relu(self.hidden(first), _SLOPE))
        return features.relu() if self._relu else features


class Critic(nn.Module):
    """D: a feature and its class → a score: psi(h) + <v_c, h>, h two hidden layers of the feature
    (projection discriminator, Miyato and Koyama 2018)."""

    def __init__(self, shape: WganShape, rows: int, means: ClassMeans | None) -> None:
        super().__init__()
        self.first = nn.Linear(shape.dimension, shape.width)
        self.hidden = nn.Linear(shape.width, shape.width)
        self.score = nn.Linear(shape.width, 1)
        fan_in = shape.width if means is None else shape.width * means.dimension
        self.of_class = _class_layer(rows, means, shape.width, 1 / math.sqrt(fan_in))

    def forward(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """features [n, d], classes [n] int64 → scores [n]."""
        hidden = F.leaky_relu(self.first(features), _SLOPE)
        hidden = F.leaky_relu(self.hidden(hidden), _SLOPE)
        score: torch.Tensor = self.score(hidden)[:, 0]
        return score + (hidden * self.of_class(classes)).sum(dim=1)


def _class_layer(
    rows: int, means: ClassMeans | None, width: int, bound: float
) -> "ClassRows | _OfMeans":
    return ClassRows(rows, width, bound) if means is None else _OfMeans(means, width, bound)


@dataclass(frozen=True)
class Wgan:
    """Both networks, for the classes so far."""

    shape: NetworkShape
    generator: ConditionalGenerator
    critic: nn.Module
    means: ClassMeans | None
    """Only where they are what networks know of classes."""

    @property
    def rows(self) -> int:
        """How many classes they know."""
        return self.generator.rows

    @classmethod
    def new(
        cls, shape: NetworkShape, rows: int, means: torch.Tensor | None, *, seed: int, step: int
    ) -> "Wgan":
        """Random networks for `rows` classes, whose `means` [rows, d] are needed where those are
        the class input. A function of (seed, step)."""
        held = None if means is None else ClassMeans.of(means)
        return cls.built(shape, rows, held, int(stream_key(seed, "wgan", step) >> 1))

    @classmethod
    def built(cls, shape: NetworkShape, rows: int, means: ClassMeans | None, seed: int) -> "Wgan":
        """Random networks by a seed of 63 bits, not by torch's generator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(shape, shape.generator(rows, means), shape.critic(rows, means), means)

    def grown(self, rows: int, means: torch.Tensor | None, *, seed: int, step: int) -> "Wgan":
        """These networks with new classes behind the old ones, `rows` in all: a copy.

        What they make of old classes is the same, bit for bit. `means` [rows - old, d] are those
        of the new ones. New weights are a function of (seed, step).
        """
        if self.means is None:
            held = None
        else:
            assert means is not None
            held = self.means.followed_by(means)
        key = int(stream_key(seed, "wgan", step) >> 1)
        wider = Wgan.built(self.shape, rows, held, key)
        name = "of_class.weight"
        for mine, theirs in (
            (self.generator, wider.generator),
            (self.critic, wider.critic),
        ):
            kept = {name: tensor.cpu() for name, tensor in mine.state_dict().items()}
            if held is None:
                fresh = theirs.state_dict()[name][self.rows :]
                kept[name] = torch.cat([kept[name], fresh])
            theirs.load_state_dict(kept)
        return wider

    def to(self, device: torch.device) -> "Wgan":
        """Moves both networks, in place."""
        self.generator.to(device)
        self.critic.to(device)
        return self

    def bytes(self) -> dict[str, int]:
        """Of both networks and what they know of classes, as Table 1 counts."""
        held = () if self.means is None else (self.means.means, self.means.shift, self.means.scale)
        return {
            "generator": sum(p.nbytes for p in self.generator.parameters()),
            "critic": sum(p.nbytes for p in self.critic.parameters()),
            "means": sum(tensor.nbytes for tensor in held),
        }
