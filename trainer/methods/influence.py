"""The Term of backward-compatible training: the frozen old classifier judges the new embedding."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from trainer.heads.distillation import distillation
from trainer.heads.margin_loss import Part
from trainer.heads.precision import product
from trainer.losses import leading
from trainer.methods.forward import Forward, OldClassifier, Over, Teacher
from trainer.methods.spelling import renamed, unspelled
from trainer.methods.wants import Answers, ClassMeans, FrozenRows, Want

Unknown = Literal["skip", "synthesise", "distil"]
"""What to do with images of identities that the old classifier lacks: leave them out (BCT), give
them rows, the class means of old embeddings (BCT-sys), or distil the old classifier's answer to the
old embedding (BCT-kd)."""


@dataclass(frozen=True)
class Influence:
    """The influence loss of the BCT paper (Eq. 8 and Sec. 2.5).

    The old classifier is of the old model's form, whatever the new one's. When the new embedding
    is longer than the old, its first elements meet the old rows.
    """

    weight: float
    unknown: Unknown
    classify_known: bool = renamed("known", default=True)
    """Classify images of the identities that the old classifier knows; else they are left out."""
    temperature: float = 1.0
    """What the distilled logits are divided by. At 1 cosines are multiplied by the old classifier's
    scale alone: the "same temperature as in the cosine margin loss" of App. A."""
    name: str = unspelled("influence")
    over: ClassVar[Over | None] = None

    @property
    def wants(self) -> tuple[Want, ...]:
        """The frozen classifier; to distil, what its model says; to synthesise, class means."""
        more: dict[Unknown, tuple[Want, ...]] = {
            "skip": (),
            "distil": (Answers(embeddings=True),),
            "synthesise": (ClassMeans(),),
        }
        return (FrozenRows(), *more[self.unknown])

    def at(self, old_rows: int) -> "Influence":
        return self

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, torch.Tensor]:
        old = forward.anchor
        assert old is not None
        embeddings = leading(forward.embeddings, old.rows.weight.shape[1])
        has_row, target = self._targets(forward.labels, forward, old)
        every_has_row, every_target = self._targets(forward.every, forward, old)
        part = forward.part and Part(forward.part.number, every_target)
        total, counted = embeddings.new_zeros(()), torch.zeros_like(every_has_row)
        if self.classify_known:
            losses = old.classifier.losses(
                embeddings, target, old.rows, forward.iteration, part=part
            )
            total, counted = total + (losses * has_row).sum(), every_has_row
        if self.unknown == "distil":
            divergence = self._distilled(embeddings, forward.teacher, old)
            total, counted = total + (divergence * ~has_row).sum(), counted | ~every_has_row
        return total, counted.sum().clamp_min(1)

    def _targets(
        self, labels: torch.Tensor, forward: Forward, old: OldClassifier
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which labels [B] have an old row, and that row; its first one for those without."""
        place = places(labels, forward.rows["new"].first, old.num_known)
        has_row = place < old.rows.last
        return has_row, torch.where(has_row, place, old.rows.first)

    def _distilled(
        self, embeddings: torch.Tensor, teacher: Teacher, old: OldClassifier
    ) -> torch.Tensor:
        """KL of the old classifier's answers to the new embeddings from those to the old: [B]."""
        assert teacher.embeddings is not None
        logits, rows = old.classifier.settings, old.rows
        said = product(logits.inputs(teacher.embeddings), rows.weight.T)
        inputs, tau = logits.inputs(embeddings), self.temperature
        crossed, entropy = distillation(
            inputs=inputs, weight=rows.weight, teacher=said, temperature=tau, ranks=rows.ranks
        )
        return crossed - entropy


def places(labels: torch.Tensor, first: int, num_known: int) -> torch.Tensor:
    """Each label [B] among the old classifier's rows, new identities behind the `num_known`
    that it knows.

    `first` is the first row that is trained now. Where it lies beyond `num_known` (the old model is
    not the last one), the rows between belong to identities of whom there is no image.
    """
    return torch.where(labels < num_known, labels, labels - max(0, first - num_known))
