"""The Terms that the methods list."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from trainer.heads.distillation import distillation
from trainer.heads.margin_loss import Part
from trainer.heads.neighbourhood import activations
from trainer.losses import embedding_distance, leading, neighbourhood_distillation, relaxed
from trainer.methods.forward import Forward, Over
from trainer.methods.recipe import Recipe
from trainer.methods.spelling import added, renamed, spelled_needs, unspelled
from trainer.methods.wants import Answers, Want


@dataclass(frozen=True)
class Classify:
    """Softmax cross-entropy with the classifier's margin (CRL paper, Eq. 1)."""

    weight: float = 1.0
    over: Over = added("new")
    """The rows of the softmax, and of the samples that count. new: all samples, over the rows of
    the identities that are trained on. all: all samples, over everybody's rows. old: samples of
    old identities, over old rows."""
    name: str = unspelled("classify")
    wants: ClassVar[tuple[Want, ...]] = ()
    spelled_end: ClassVar = f"needs={spelled_needs()}"

    def at(self, old_rows: int) -> "Classify":
        """Without old rows, all rows are the new ones."""
        return self if old_rows or self.over == "old" else replace(self, over="new")

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int | torch.Tensor]:
        if self.over == "old":
            return self._of_old_identities(forward)
        losses = forward.classifier.losses(
            forward.embeddings,
            forward.labels,
            forward.rows[self.over],
            forward.iteration,
            forward.update,
            forward.part,
        )
        return losses.sum(), len(forward.every)

    def _of_old_identities(self, forward: Forward) -> tuple[torch.Tensor, torch.Tensor]:
        rows = forward.rows["old"]
        is_old, every_is_old = forward.labels < rows.last, forward.every < rows.last
        # samples of new identities stay in the batch, labelled as the first row's, and weigh
        # nothing: leaving them out would make shapes depend on data, for which a GPU waits
        target = torch.where(is_old, forward.labels, rows.first)
        every_target = torch.where(every_is_old, forward.every, rows.first)
        losses = forward.classifier.losses(
            forward.embeddings,
            target,
            rows,
            forward.iteration,
            part=forward.part and Part(forward.part.number, every_target),
            observe=False,  # the margin's statistics move with the Term that classifies all samples
        )
        return (losses * is_old).sum(), every_is_old.sum().clamp_min(1)


def softmax_is_constant(recipe: Recipe, rows: int) -> bool:
    """Whether `recipe` classifies by a softmax over the `rows` of the identities it trains on, and
    there is but one: its loss is 0, and so is its gradient."""
    return rows == 1 and any(isinstance(t, Classify) and t.over == "new" for t in recipe.terms)


@dataclass(frozen=True)
class MatchEmbeddings:
    """Keeps embeddings where the previous model put them (LFL).

    `known_only` leaves out the identities that it was not trained on (the BCT paper's l2, Eq. 3).
    """

    weight: float
    known_only: bool = renamed("known", default=False)
    name: str = unspelled("matchembeddings")
    over: ClassVar[Over | None] = None
    wants: ClassVar[tuple[Want, ...]] = (Answers(embeddings=True),)
    spelled_end: ClassVar = f"needs={spelled_needs(wants)}"

    def at(self, old_rows: int) -> "MatchEmbeddings":
        return self

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int | torch.Tensor]:
        old = forward.teacher.embeddings
        assert old is not None
        losses = embedding_distance(leading(forward.embeddings, old.shape[1]), old)
        if not self.known_only:
            return losses.sum(), len(forward.every)
        counted = forward.labels < forward.teacher.num_known
        return (losses * counted).sum(), (
            forward.every < forward.teacher.num_known
        ).sum().clamp_min(1)


@dataclass(frozen=True)
class Distill:
    """Keeps the previous model's distribution over old identities (Sec. 4 of the CRL paper)."""

    weight: float
    neighbours: int | None
    """K old identities chosen for each image; none: all of them."""
    relaxation: float
    """beta, share of the teacher's entropy left free."""
    temperature: float
    divergence: Literal["kl", "cross_entropy"] = "kl"
    name: str = unspelled("distill")
    over: ClassVar[Over | None] = "old"

    @property
    def wants(self) -> tuple[Want, ...]:
        return (Answers(embeddings=self.neighbours is None, top_k=self.neighbours),)

    def at(self, old_rows: int) -> "Distill":
        """K >= C_old is all old rows: a matrix product, and bit for bit the same as Basic."""
        whole = self.neighbours is not None and self.neighbours >= old_rows
        return replace(self, neighbours=None) if whole else self

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        student, teacher = forward.rows["old"], forward.teacher
        logits = forward.classifier.settings
        inputs = logits.inputs(forward.embeddings)
        if self.neighbours is None:
            assert teacher.embeddings is not None and teacher.rows is not None
            said = logits.inputs(teacher.embeddings) @ teacher.rows.weight.T
            weight = logits.directions(student.weight)
            pair = distillation(
                inputs=inputs,
                weight=weight,
                teacher=said,
                temperature=self.temperature,
                ranks=student.ranks,
            )
        else:
            assert teacher.classes is not None and teacher.activations is not None
            own = activations(inputs, student, teacher.classes, logits.unit_rows)
            pair = neighbourhood_distillation(own, teacher.activations, self.temperature)
        crossed, entropy = pair
        if self.divergence == "cross_entropy":
            return crossed.sum(), len(forward.every)
        return relaxed(crossed, entropy, self.relaxation).sum(), len(forward.every)
