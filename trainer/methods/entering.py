"""What enters the network beside an update's images, as a recipe has it and as its Terms see it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.heads.margin_loss import Part
from trainer.methods.wants import Want


@dataclass(frozen=True)
class Entering:
    """What a Term has the network be given beside the images."""

    by: type[Want]
    """What it wants of earlier models that makes a `trainer.replay.source.FeatureSource`."""
    place: str
    """Where it enters, see `trainer.entrance.Place`: before the embedding."""
    count: int | None = None
    """How many in an update; none: as many as the global batch has images."""


@dataclass(frozen=True)
class Drawn:
    """What the network made of it, as `Forward` has that of images."""

    embeddings: torch.Tensor
    """[n, d], gathered over the ranks, with autograd."""
    classes: torch.Tensor
    """[n] int64 classifier rows."""
    part: Part | None = None
    """Where these are a part of what is drawn in the update only."""

    @property
    def every(self) -> torch.Tensor:
        """The classes of all that is drawn in the update."""
        return self.classes if self.part is None else self.part.labels


@dataclass(frozen=True)
class Within:
    """What this model and the previous one make of this rank's images at the place where drawn
    inputs enter: for Terms that want `AnswersWithin`."""

    now: torch.Tensor
    """[b, ...], with autograd."""
    before: torch.Tensor
    """[b, ...]"""
    gathered: Callable[[torch.Tensor], torch.Tensor]
    """A number of each of this rank's images, [b] → those of all ranks' images, [B], equal on
    every rank, with autograd. Features themselves would be a thousand times as much to send."""
