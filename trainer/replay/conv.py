"""Networks of a conditional WGAN of images, or of what a convolution makes of them.

The generator begins with one linear layer of noise and class, as that of features does
(`trainer.replay.wgan`), unfolds it into a few wide pixels and doubles their sides by transposed
convolutions (Radford et al. 2016, DCGAN). The critic is its mirror image with a projection of the
class (Miyato and Koyama 2018, Eq. 3; their sum over pixels).

Neither has a batch normalisation. An image must be a function of its own class and noise,
whatever else is drawn with it, and the critic's gradient penalty is of one sample. In the
generator, each sample's channels are normalised together (Wu and He 2018, with one group).
"""

import math
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn import functional as F

from trainer.replay.wgan import ClassMeans, ClassRows, ConditionalGenerator, Ends

_SLOPE = 0.2
"""Of the leaky ReLUs where they are negative, as in the networks of features."""
_LEAST_SIDE = 4
"""Pixels; sides are halved while they are whole and at least as long."""
_WIDEST = 8
"""Channels at the smallest side, as a multiple of the width."""
_Side = Annotated[int, Field(ge=1, lt=1 << 13)]


class ConvShape(BaseModel):
    """Of networks of images; see `trainer.replay.wgan.NetworkShape`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int = Field(ge=1, lt=1 << 16)
    size: tuple[_Side, _Side]
    """Height and width, pixels."""
    noise: int = Field(ge=1, lt=1 << 20)
    """Length of z."""
    width: int = Field(ge=1, lt=1 << 16)
    """Channels of the layers at full size; twice as many at each half of it, up to 8 times."""
    ends: Ends

    @property
    def features(self) -> tuple[int, ...]:
        """See `NetworkShape`."""
        return self.channels, *self.size

    @property
    def halvings(self) -> int:
        """How often sides are halved."""
        count, sides = 0, self.size
        while all(s % 2 == 0 and s // 2 >= _LEAST_SIDE for s in sides):
            count, sides = count + 1, (sides[0] // 2, sides[1] // 2)
        return count

    @property
    def smallest(self) -> tuple[int, int]:
        """Height and width of the fewest pixels."""
        height, width = self.size
        return height >> self.halvings, width >> self.halvings

    @property
    def ladder(self) -> list[int]:
        """Channels from the largest side on; two numbers at least."""
        return [
            self.width * max(1, _WIDEST >> level) for level in range(max(1, self.halvings), -1, -1)
        ]

    def generator(self, rows: int, means: ClassMeans | None) -> "ConvGenerator":
        """See `NetworkShape`."""
        if means is not None:
            raise ValueError("these networks know nothing of class means")
        return ConvGenerator(self, rows)

    def critic(self, rows: int, means: ClassMeans | None) -> "ConvCritic":
        """See `NetworkShape`."""
        return ConvCritic(self, rows)


class ConvGenerator(ConditionalGenerator):
    """Of images [channels, height, width]."""

    def __init__(self, shape: ConvShape, rows: int) -> None:
        super().__init__(shape.noise)
        self._shape = shape
        ladder, units = shape.ladder[::-1], _WIDEST * shape.width
        bound = 1 / math.sqrt(shape.noise + rows)
        self.of_noise = nn.Linear(shape.noise, units)
        for parameter in self.of_noise.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        self.of_class = ClassRows(rows, units, bound)
        self.unfold = nn.Linear(units, ladder[0] * math.prod(shape.smallest))
        stages: list[nn.Module] = []
        for wide, narrow in pairwise(ladder):
            stages += [nn.GroupNorm(1, wide), nn.LeakyReLU(_SLOPE)]
            if shape.halvings:
                stages.append(nn.ConvTranspose2d(wide, narrow, 4, 2, 1))
            else:  # too small to be doubled
                stages.append(nn.Conv2d(wide, narrow, 3, 1, 1))
        self.stages = nn.Sequential(*stages, nn.GroupNorm(1, ladder[-1]), nn.LeakyReLU(_SLOPE))
        self.last = nn.Conv2d(ladder[-1], shape.channels, 3, 1, 1)

    def forward(self, classes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """classes [n] int64, noise [n, `noise`] → [n, channels, height, width], with autograd."""
        first = F.leaky_relu(self.of_noise(noise) + self.of_class(classes), _SLOPE)
        wide: torch.Tensor = self.unfold(first)
        pixels: torch.Tensor = self.last(
            self.stages(wide.unflatten(1, (-1, *self._shape.smallest)))
        )
        if self._shape.ends == "tanh":
            return pixels.tanh()
        return pixels.relu() if self._shape.ends == "relu" else pixels


class ConvCritic(nn.Module):
    """D: [channels, height, width] and its class → a score: psi(h) + <v_c, h>, where h is the sum
    over pixels of the last convolution's channels."""

    def __init__(self, shape: ConvShape, rows: int) -> None:
        super().__init__()
        ladder = shape.ladder
        stages: list[nn.Module] = [nn.Conv2d(shape.channels, ladder[0], 3, 1, 1)]
        for narrow, wide in pairwise(ladder):
            stages.append(nn.LeakyReLU(_SLOPE))
            if shape.halvings:
                stages.append(nn.Conv2d(narrow, wide, 4, 2, 1))
            else:
                stages.append(nn.Conv2d(narrow, wide, 3, 1, 1))
        self.stages = nn.Sequential(*stages, nn.LeakyReLU(_SLOPE))
        self.score = nn.Linear(ladder[-1], 1)
        self.of_class = ClassRows(rows, ladder[-1], 1 / math.sqrt(ladder[-1]))

    def forward(self, inputs: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """inputs [n, channels, height, width], classes [n] int64 → scores [n]."""
        hidden = self.stages(inputs).sum(dim=(2, 3))
        score: torch.Tensor = self.score(hidden)[:, 0]
        return score + (hidden * self.of_class(classes)).sum(dim=1)
