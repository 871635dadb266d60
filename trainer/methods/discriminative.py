"""Discriminative distillation: what old and new classes are confused about (paper 4).

A temporary expert learns the step's new classes and the old ones most like them; its softmax over
these is distilled into the new model, beside the host's own losses (Eqs. 1, 2 and 4). Without an
old class it is dual distillation, which the paper extends.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field

from data_shards.settings import UNDECIDING, Settings
from trainer.arrays import read_arrays
from trainer.heads.collectives import Ranks
from trainer.heads.distillation import distillation
from trainer.methods.fine_tuning import Lessons
from trainer.methods.forward import Forward
from trainer.methods.spelling import added, unspelled
from trainer.methods.wants import Want
from trainer.model import Model


class OnAllImages(Lessons):
    """The expert's first training: on all images of its classes."""

    epochs: int = Field(default=80, ge=1)
    """Passes over them."""
    learning_rate: float = Field(default=0.1, gt=0)
    """At its start."""
    milestones: tuple[int, ...] = (40, 60)
    """Epochs after which the learning rate is divided by `decay`. The paper names none."""


class OnBalancedImages(Lessons):
    """Its second: on as many images of each of its classes as the smallest has."""

    epochs: int = Field(default=40, ge=1)
    """Passes over them."""
    learning_rate: float = Field(default=0.01, gt=0)
    """At its start. The paper names none."""
    milestones: tuple[int, ...] = (20,)
    """Epochs after which the learning rate is divided by `decay`."""


class ExpertSettings(Settings):
    """A temporary expert on what may be confused, and how it teaches. Defaults are the paper's."""

    similar: int = Field(default=1, ge=0, le=4)
    """k, old classes that each new one brings in, the nearest by class centres, from a memory's
    exemplars; no old class for two new ones. 0: none, which is dual distillation."""
    weight: float = Field(default=1.0, ge=0)
    """lambda_2, weight of the expert's distillation."""
    temperature: float = Field(default=2.0, gt=0)
    """T_n of both softmaxes."""
    teaches: Literal["all", "own"] = "all"
    """On which images it teaches: all that the step trains on, as in the paper; or those of its own
    classes, since of others it can only guess which of its classes they are."""
    start: Literal["scratch", "previous"] = "scratch"
    """Where its network starts: random, or the previous model's, which the paper leaves open."""
    on_all: OnAllImages = OnAllImages()
    """Its first training: on all images of its classes."""
    balanced: OnBalancedImages = OnBalancedImages()
    """Its second, on a balanced subset."""
    keep: Annotated[bool, UNDECIDING] = False
    """Leave it, and what it said of the images, when its step is done; else they are deleted."""


def classes(similar: int, old_rows: int, new_rows: int) -> int:
    """t, how many classes an expert tells apart."""
    return new_rows + min(old_rows, similar * new_rows)


class ExpertRows(NamedTuple):
    """Which classes an expert tells apart."""

    rows: torch.Tensor
    """[t] int64, their classifier rows, ascending: the expert's own row e is of rows[e]."""
    own: torch.Tensor
    """[own] int64, the e whose row this rank owns."""


@dataclass(frozen=True)
class Similar(Want):
    """The new classes, and the old ones nearest to them by the previous model."""

    count: int
    """k, of each new one."""
    new_rows: int = 0
    """C_new, for dry runs."""

    def load(self, path: Path, ranks: Ranks, device: torch.device) -> ExpertRows:
        rows = torch.from_numpy(read_arrays(path, needs=("rows",))["rows"])
        own = (rows % ranks.world == ranks.rank).nonzero()[:, 0]
        return ExpertRows(rows.to(device), own.to(device))

    def imagined(
        self, parameters: Mapping[str, torch.Tensor], rows: int, shape: tuple[int, ...]
    ) -> ExpertRows:
        """As on one rank, which owns all."""
        last = rows + self.new_rows
        own = torch.arange(classes(self.count, rows, self.new_rows))
        return ExpertRows(torch.arange(last - len(own), last), own)


@dataclass(frozen=True)
class Expert(Want):
    """A model that has learned the classes of `Similar`."""

    how: ExpertSettings
    new_rows: int = 0

    def load(self, path: Path, ranks: Ranks, device: torch.device) -> torch.Tensor:
        """[t, d] its rows as its logits see them, on every rank. Raises DamagedError."""
        return Model.open(path).frozen_rows(Ranks()).weight.detach().to(device)

    def imagined(
        self, parameters: Mapping[str, torch.Tensor], rows: int, shape: tuple[int, ...]
    ) -> torch.Tensor:
        return torch.empty(self.classes(rows), *shape)

    def classes(self, old_rows: int) -> int:
        """How many it tells apart."""
        return classes(self.how.similar, old_rows, self.new_rows)


@dataclass(frozen=True)
class ExpertAnswers(Want):
    """What the expert says of each training image, computed ahead."""

    keep: bool
    """See `ExpertSettings.keep`."""


@dataclass(frozen=True)
class DistilExpert:
    """Cross-entropy from the expert's softmax over its t classes to the new model's over the same
    rows, at a temperature, of all images, exemplars included (Eqs. 1 and 2), or of its own classes'
    alone."""

    weight: float
    temperature: float
    over: Literal["new", "all"]
    teaches: Literal["all", "own"] = added("all")
    how: ExpertSettings = unspelled(ExpertSettings(), repr=False)  # its phases name it
    new_rows: int = unspelled(0, repr=False)
    name: str = unspelled("distill_expert")

    @property
    def wants(self) -> tuple[Want, ...]:
        return Similar(self.how.similar, self.new_rows), Expert(self.how, self.new_rows)

    def at(self, old_rows: int) -> "DistilExpert | None":
        """Nothing where it weighs nothing: no expert is trained then."""
        return self if self.weight else None

    def among(self, old_rows: int, new_rows: int) -> "DistilExpert":
        """The new classes are the expert's, too: see `Similar.imagined`."""
        return replace(self, new_rows=new_rows)

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int | torch.Tensor]:
        known: ExpertRows = forward.loaded[Similar]
        expert: torch.Tensor = forward.loaded[Expert]
        assert forward.expert is not None
        # a rank has the same of the expert's rows as of the student's: sums over ranks are of both
        place, _ = forward.rows[self.over].local(known.rows[known.own])
        inputs, weight = self.student(forward, place)
        said = forward.classifier.settings.inputs(forward.expert) @ expert[known.own].T
        crossed, _ = distillation(
            inputs=inputs,
            weight=weight,
            teacher=said,
            temperature=self.temperature,
            ranks=forward.rows[self.over].ranks,
        )
        if self.teaches == "all":
            return crossed.sum(), len(forward.every)
        own, every = (torch.isin(of, known.rows) for of in (forward.labels, forward.every))
        return (crossed * own).sum(), every.sum().clamp_min(1)

    def student(self, forward: Forward, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the new model's logits of the rank's rows at `place` [own] are products of."""
        settings = forward.classifier.settings
        weight = forward.rows[self.over].weight[place]
        return settings.inputs(forward.embeddings), settings.directions(weight)


def distilled(
    expert: ExpertSettings | None, over: Literal["new", "all"]
) -> tuple[DistilExpert, ...]:
    """What an expert adds to a host's Terms, whose new images are told apart by the rows `over`."""
    if expert is None:
        return ()
    return (DistilExpert(expert.weight, expert.temperature, over, expert.teaches, expert),)
