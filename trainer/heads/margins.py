"""Margins of softmax losses: the target's logit with its margin, and the derivative.

Only the target's logit has a margin, so a margin is a function of [B] numbers: whichever is chosen,
it costs nothing beside the matrix products.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from data_shards.settings import Settings

_NEAREST = 1e-3
"""Radians that angles keep from 0 and pi, where the derivative of acos is infinite."""


def monotonic_cosine(
    cosine: torch.Tensor, factor: float, shift: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """psi(factor·theta + shift) with theta = acos(`cosine`), and d psi / d cosine: [B], [B].

    psi(x) = (-1)^k cos x - 2k with k = floor(x / pi) continues to fall beyond pi, where the cosine
    would rise again and the loss pull a far embedding further away (A-Softmax, Liu et al. 2017,
    Eq. 7, for any margin and not only integer factors). The usual fix for ArcFace, cos theta -
    m sin m beyond pi - m, jumps there and exists for that margin only. Negative x counts as 0, as
    in AdaFace's code.
    """
    theta = cosine.clamp(-1, 1).acos().clamp(_NEAREST, math.pi - _NEAREST)
    x = factor * theta + shift
    turned = x.clamp_min(0)
    half_turns = (turned / math.pi).floor()
    sign = 1 - 2 * (half_turns % 2)
    value = sign * turned.cos() - 2 * half_turns
    slope = factor * turned.sin().abs() / theta.sin()
    return value, torch.where(x < 0, 0, slope)


class Softmax(Settings):
    """Linear logits, as in the CRL paper: no normalisation, no scale, no margin."""

    kind: Literal["softmax"] = "softmax"
    """Linear logits, without normalisation and margin."""

    @property
    def scale(self) -> None:
        """None: embeddings are not normalised."""

    @property
    def unit_rows(self) -> bool:
        """Whether rows are normalised."""
        return False


class Cosine(Settings):
    """Linear logits of unit rows. Where the network gives unit embeddings times a scale that it
    learns (`embedder.activation` cosine), these are scaled cosines (LUCIR)."""

    kind: Literal["cosine"] = "cosine"
    """Rows of unit length, and embeddings as they are."""

    @property
    def scale(self) -> None:
        """None: embeddings are not normalised."""

    @property
    def unit_rows(self) -> bool:
        """Whether rows are normalised."""
        return True


class _Angular(Settings):
    """Logits are `scale` times the cosine between embedding and row."""

    scale: float = Field(default=64.0, gt=0)
    """s, what cosines are multiplied by."""

    @property
    def unit_rows(self) -> bool:
        """Whether rows are normalised."""
        return True

    def target(
        self, cosine: torch.Tensor, norms: torch.Tensor, running: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The targets' cosines with their margin, and its derivative by the cosine: [B], [B].

        `cosine` [B] are the targets', `norms` [B] the embeddings' lengths, `running` the statistics
        that `initial` began.
        """
        raise NotImplementedError

    def initial(self) -> dict[str, torch.Tensor]:
        """The running statistics before training; most margins have none."""
        return {}

    def observe(self, norms: torch.Tensor, running: dict[str, torch.Tensor]) -> None:
        """Updates the running statistics with the global batch's `norms` [B]."""


class NormSoftmax(_Angular):
    """Normalised softmax: cosines without a margin."""

    kind: Literal["norm_softmax"] = "norm_softmax"
    """Scaled cosines without a margin."""

    def target(
        self, cosine: torch.Tensor, norms: torch.Tensor, running: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return cosine, torch.ones_like(cosine)


class CosFace(_Angular):
    """s(cos theta - m): CosFace (Wang et al. 2018, Eq. 4)."""

    kind: Literal["cosface"] = "cosface"
    """A margin subtracted from the target's cosine."""
    margin: float = Field(default=0.4, ge=0)
    """m, subtracted from the target's cosine."""

    def target(
        self, cosine: torch.Tensor, norms: torch.Tensor, running: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return cosine - self.margin, torch.ones_like(cosine)


class ArcFace(_Angular):
    """s·cos(theta + m): ArcFace (Deng et al. 2019, Eq. 3), monotonic beyond pi - m."""

    kind: Literal["arcface"] = "arcface"
    """A margin added to the target's angle."""
    margin: float = Field(default=0.5, ge=0)
    """m, added to the target's angle, radians."""

    def target(
        self, cosine: torch.Tensor, norms: torch.Tensor, running: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return monotonic_cosine(cosine, 1.0, self.margin)


class Combined(_Angular):
    """s(cos(m1·theta + m2) - m3): all three margins at once (ArcFace paper, Eq. 4)."""

    kind: Literal["combined"] = "combined"
    """All three margins at once."""
    m1: float = Field(default=1.0, ge=1)
    """What the target's angle is multiplied by (SphereFace)."""
    m2: float = Field(default=0.3, ge=0)
    """Added to the target's angle, radians (ArcFace)."""
    m3: float = Field(default=0.2, ge=0)
    """Subtracted from the target's cosine (CosFace)."""

    def target(
        self, cosine: torch.Tensor, norms: torch.Tensor, running: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        value, slope = monotonic_cosine(cosine, self.m1, self.m2)
        return value - self.m3, slope


class AdaFace(_Angular):
    """A margin that depends on image quality, measured by the embedding's norm (Kim et al. 2022,
    Eq. 9).

    Norms are standardised by a running mean and deviation of the global batches; no gradient flows
    through them.
    """

    kind: Literal["adaface"] = "adaface"
    """A margin that follows image quality."""
    margin: float = Field(default=0.4, ge=0)
    """m, size of the margin."""
    concentration: float = Field(default=0.333, gt=0)
    """h, how much of the norms' distribution lies between the extremes."""
    momentum: float = Field(default=0.01, gt=0, le=1)
    """Share of a batch in the running mean and deviation of the norms (1 - alpha of the paper)."""

    def initial(self) -> dict[str, torch.Tensor]:
        """The mean and deviation that AdaFace's authors start from."""
        return {"norm_mean": torch.tensor(20.0), "norm_deviation": torch.tensor(100.0)}

    def observe(self, norms: torch.Tensor, running: dict[str, torch.Tensor]) -> None:
        """Updates mean and deviation, unless the batch's norms are not finite."""
        if len(norms) < 2:  # a single norm has no deviation
            return
        norms = norms.clamp(1e-3, 100)  # as AdaFace's code does
        for name, seen in (("norm_mean", norms.mean()), ("norm_deviation", norms.std())):
            held = running[name]
            held.copy_(torch.where(seen.isfinite(), held.lerp(seen.to(held), self.momentum), held))

    def target(
        self, cosine: torch.Tensor, norms: torch.Tensor, running: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # clamped as in `observe`, which the mean and deviation are of
        above = norms.clamp(1e-3, 100) - running["norm_mean"]
        quality = (above * self.concentration / (running["norm_deviation"] + 1e-3)).clamp(-1, 1)
        value, slope = monotonic_cosine(cosine, 1.0, -self.margin * quality)
        return value - (self.margin * quality + self.margin), slope


Margin = Annotated[
    Softmax | Cosine | NormSoftmax | CosFace | ArcFace | Combined | AdaFace,
    Field(discriminator="kind"),
]
