"""BiC (Wu et al. 2019): what was learned last is favoured, by about one line for all its classes.

Stage 1 trains the network; stage 2 (`trainer.bias`, the phase in `launch.phases.bias`) fits alpha
and beta of "alpha z + beta for the new classes" on images that stage 1 did not see. The lines of
earlier steps belong to the old model: its logits are the corrected ones, as targets of the
distillation, and the new model's logits of those classes go through the same lines, frozen, in both
losses and when it decides. Without that a line that was learned by distillation would be applied a
second time.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field

from data_shards.settings import InputError
from trainer.checkpoint import Folder
from trainer.decisions import BiasCorrected
from trainer.heads.collectives import Ranks
from trainer.heads.distillation import distillation
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.rows import own_ids
from trainer.methods.discriminative import DistilExpert, ExpertSettings, distilled
from trainer.methods.forward import Forward, Over
from trainer.methods.images import NewImages
from trainer.methods.memory import Host, MemorySettings
from trainer.methods.recipe import Recipe, Term
from trainer.methods.spelling import unspelled
from trainer.methods.terms import Classify
from trainer.methods.wants import Answers, Want


class Lines(NamedTuple):
    """The lines of this rank's old rows, in float64."""

    alpha: torch.Tensor
    """[own]"""
    beta: torch.Tensor
    """[own]"""

    def rows(self, weight: torch.Tensor) -> torch.Tensor:
        """`weight` [own + new, d] as corrected logits see it: [own + new, d + 1], of which
        embeddings followed by a 1 are multiplied. New rows are as they are."""
        new = len(weight) - len(self.alpha)
        alpha = torch.cat([self.alpha, self.alpha.new_ones(new)]).to(weight.dtype)
        beta = torch.cat([self.beta, self.beta.new_zeros(new)]).to(weight.dtype)
        return torch.cat([weight * alpha[:, None], beta[:, None]], dim=1)


def with_one(embeddings: torch.Tensor) -> torch.Tensor:
    """`embeddings` [B, d], each followed by a 1: [B, d + 1]."""
    return torch.cat([embeddings, embeddings.new_ones(len(embeddings), 1)], dim=1)


def check_linear(classifier: ClassifierSettings) -> None:
    """Raises InputError for logits that are no products of embeddings with all rows."""
    if classifier.scale is not None or classifier.sampled < 1:
        raise InputError(
            "bic corrects plain logits over all rows: set classifier.margin.kind=softmax and "
            "classifier.sampled=1 for it, or leave the method out"
        )


@dataclass(frozen=True)
class Corrections(Want):
    """The lines of all steps before."""

    def load(self, path: Path, ranks: Ranks, device: torch.device) -> Lines:
        """From the decision that the step before left. Raises DamagedError."""
        saved = Folder.at(path)
        saved.card("decision")
        prepared = saved.tensors("prepared")
        with saved.intact("prepared.safetensors"):
            own = own_ids(0, len(prepared["alpha"]), ranks)
            return Lines(*(prepared[name][own].to(device) for name in ("alpha", "beta")))


@dataclass(frozen=True)
class ClassifyCorrected:
    """Cross-entropy over all rows, those of earlier steps corrected (BiC, Eq. 3)."""

    weight: float = 1.0
    """1 - lambda, once it is known how many classes are old and new."""
    name: str = unspelled("classify")
    over: ClassVar[Over | None] = "all"
    wants: ClassVar[tuple[Want, ...]] = (Corrections(),)

    def at(self, old_rows: int) -> Term:
        """At step 0 there is nothing to correct: every method's cross-entropy."""
        return self if old_rows else Classify()

    def among(self, old_rows: int, new_rows: int) -> "ClassifyCorrected":
        """lambda is C_old / (C_old + C_new): the more is known, the more is kept (Eq. 4)."""
        return replace(self, weight=new_rows / (old_rows + new_rows))

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        rows, lines = forward.rows["all"], forward.loaded.get(Corrections)
        embeddings = forward.embeddings
        if lines is not None:  # there are none where a training is only planned
            check_linear(forward.classifier.settings)
            embeddings = with_one(embeddings)
            rows = rows.seen_as(lines.rows(rows.weight))
        losses = forward.classifier.losses(
            embeddings, forward.labels, rows, forward.iteration, part=forward.part
        )
        return losses.sum(), len(forward.every)


@dataclass(frozen=True)
class DistilCorrected:
    """Cross-entropy from the old model's softmax over the old classes, both sides corrected
    (BiC, Eq. 2)."""

    temperature: float
    weight: float = 1.0
    """lambda, once it is known."""
    name: str = unspelled("distill")
    over: ClassVar[Over | None] = "old"
    wants: ClassVar[tuple[Want, ...]] = (Answers(embeddings=True), Corrections())

    def at(self, old_rows: int) -> "DistilCorrected":
        return self

    def among(self, old_rows: int, new_rows: int) -> "DistilCorrected":
        """See `ClassifyCorrected.among`."""
        return replace(self, weight=old_rows / (old_rows + new_rows))

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        student, teacher = forward.rows["old"], forward.teacher
        settings, lines = forward.classifier.settings, forward.loaded.get(Corrections)
        assert teacher.embeddings is not None and teacher.rows is not None
        inputs, said = (settings.inputs(e) for e in (forward.embeddings, teacher.embeddings))
        weight, old = settings.directions(student.weight), teacher.rows.weight
        if lines is not None:
            inputs, said = with_one(inputs), with_one(said)
            weight, old = lines.rows(weight), lines.rows(old)
        crossed, _ = distillation(
            inputs=inputs,
            weight=weight,
            teacher=said @ old.T,
            temperature=self.temperature,
            ranks=student.ranks,
        )
        return crossed.sum(), len(forward.every)


@dataclass(frozen=True)
class DistilExpertCorrected(DistilExpert):
    """What the expert says, of logits that are corrected as in the other losses."""

    def student(self, forward: Forward, place: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lines = forward.loaded.get(Corrections)
        if lines is None:  # where a training is only planned
            return super().student(forward, place)
        return with_one(forward.embeddings), lines.rows(forward.rows[self.over].weight)[place]


class BiasCorrection(Host):
    """BiC: distillation with exemplars, then two numbers that give old classes their due."""

    kind: Literal["bic"] = "bic"
    memory: MemorySettings = MemorySettings(total=2000)
    """Exemplars of old identities; the authors' 2,000 for CIFAR-100, 20,000 for ImageNet."""
    temperature: float = Field(default=2.0, gt=0)
    """tau of both softmaxes of the distillation."""
    hold_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of each old identity's exemplars that is held out from training, to fit the two numbers
    on, together with as many images of each new identity; rounded down. The authors' 1 in 10."""
    expert: ExpertSettings | None = None
    """A temporary expert on new classes and the old ones most like them, see `lwf`'s; none: there
    is none."""
    decay: float = Field(default=1e-4, gt=0)
    """Half of it times their squared distance from 1 and 0 is added to the mean cross-entropy that
    the two numbers minimise: it keeps them finite where all held-out images are told apart."""

    def recipe(self) -> Recipe:
        return Recipe(
            images=(NewImages(), self.memory.source()),
            terms=(
                ClassifyCorrected(),
                DistilCorrected(self.temperature),
                *(DistilExpertCorrected(**vars(t)) for t in distilled(self.expert, "all")),
            ),
            predict=BiasCorrected(self.decay),
            hold_out=self.hold_out,
            fine_tune=self.fine_tune,
        )

    def loss(self, usual: ClassifierSettings, step: int) -> ClassifierSettings:
        check_linear(usual)
        return usual
