"""The Terms that the methods list."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from trainer.heads.distillation import distillation
from trainer.heads.neighbourhood import activations
from trainer.losses import embedding_distance, leading, neighbourhood_distillation, relaxed
from trainer.methods.recipe import Forward, Needs
from trainer.methods.spelling import renamed, spelled


@dataclass(frozen=True)
class Classify:
    """Softmax cross-entropy over the current rows, with the classifier's margin (CRL, Eq. 1)."""

    weight: float = 1.0
    needs: ClassVar[Needs] = Needs()
    spelled_end: ClassVar = f"needs={spelled(needs)}"

    def at(self, old_rows: int) -> "Classify":
        return self

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        losses = forward.classifier.losses(
            forward.embeddings,
            forward.labels,
            forward.current,
            forward.iteration,
            forward.update,
            forward.part,
        )
        return losses.sum(), len(forward.every)


@dataclass(frozen=True)
class MatchEmbeddings:
    """Keeps embeddings where the previous model put them (LFL).

    `known_only` leaves out the identities that it was not trained on (the BCT paper's l2, Eq. 3).
    """

    weight: float
    known_only: bool = renamed("known", default=False)
    needs: ClassVar[Needs] = Needs(embeddings=True)
    spelled_end: ClassVar = f"needs={spelled(needs)}"

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

    @property
    def needs(self) -> Needs:
        if self.neighbours is None:
            return Needs(embeddings=True, trained_rows=True)
        return Needs(neighbours=self.neighbours, trained_rows=True)

    def at(self, old_rows: int) -> "Distill":
        """K >= C_old is all old rows: a matrix product, and bit for bit the same as Basic."""
        whole = self.neighbours is not None and self.neighbours >= old_rows
        return replace(self, neighbours=None) if whole else self

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        student, teacher = forward.previous, forward.teacher
        assert student is not None
        logits = forward.classifier.settings
        inputs = logits.inputs(forward.embeddings)
        if self.neighbours is None:
            assert teacher.embeddings is not None and teacher.rows is not None
            said = logits.inputs(teacher.embeddings) @ teacher.rows.weight.T
            weight = logits.directions(student.weight)
            pair = distillation(inputs, weight, said, self.temperature, student.ranks)
        else:
            assert teacher.classes is not None and teacher.activations is not None
            own = activations(inputs, student, teacher.classes, logits.scale is not None)
            pair = neighbourhood_distillation(own, teacher.activations, self.temperature)
        crossed, entropy = pair
        if self.divergence == "cross_entropy":
            return crossed.sum(), len(forward.every)
        return relaxed(crossed, entropy, self.relaxation).sum(), len(forward.every)
