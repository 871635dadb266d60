"""What a Term sees in one iteration: the batch, the classifier, and what earlier models say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from trainer.heads.cross_entropy import Update
from trainer.heads.margin_loss import MarginLoss, Part
from trainer.heads.rows import ShardedRows, own_ids
from trainer.methods.entering import Drawn, Within
from trainer.methods.wants import Want

Over = Literal["old", "new", "all"]
"""Whose classifier rows: of identities from before the step, of those whose images it trains on
(everybody's, where a recipe sees all images), or of every identity so far."""


@dataclass(frozen=True)
class Teacher:
    """What the previous model says of a global batch of B images, equal on every rank."""

    embeddings: torch.Tensor | None = None
    """[B, d] the previous model's embeddings."""
    classes: torch.Tensor | None = None
    """[B, K] int64, each image's K old identities with the highest activations."""
    activations: torch.Tensor | None = None
    """[B, K] float32, the previous model's activations on them."""
    rows: ShardedRows | None = None
    """The previous model's own rows as its logits see them, frozen."""
    num_known: int = 0
    """How many identities it was trained on; those beyond are new to it."""


@dataclass(frozen=True)
class OldClassifier:
    """The classifier of a finished model, frozen."""

    rows: ShardedRows
    """As its logits see them; for Terms that want class means, followed by one row for each
    identity trained on now that it does not know."""
    classifier: MarginLoss
    """Its margin and running statistics."""
    num_known: int
    """How many of the rows it was trained with."""

    def trained(self) -> "OldClassifier":
        """It without the rows behind those that it was trained with, in the same memory."""
        ranks = self.rows.ranks
        own = self.rows.weight.detach()[: len(own_ids(0, self.num_known, ranks))]
        rows = ShardedRows(0, self.num_known, own, ranks).requires_grad_(False)
        return OldClassifier(rows, self.classifier, self.num_known)

    def teacher(self, **said: torch.Tensor | None) -> Teacher:
        """Its rows, with what its model `said` of a batch."""
        return Teacher(rows=self.rows, num_known=self.num_known, **said)


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Everything a Term may look at in one iteration."""

    embeddings: torch.Tensor
    """[B, d] the embeddings of the global batch, or of a part of it, gathered over the ranks, with
    autograd."""
    labels: torch.Tensor
    """[B] int64 classifier rows."""
    rows: Mapping[Over, ShardedRows]
    """The rows of old identities, of those whose images are trained on, and of all; see
    `trainer.row_layout.rows_over`. Only those that a Term of the recipe is over are sure to be
    there."""
    classifier: MarginLoss
    teacher: Teacher = Teacher()
    """What the previous model says, for Terms that want `Answers`."""
    loaded: Mapping[type[Want], Any] = field(default_factory=dict)
    """What earlier phases prepared for other wants, by the want's class (`Want.load`)."""
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The embedder's trainable parameters by name, with autograd, equal on every rank."""
    iteration: int = 0
    seed: int = 0
    """Of what Terms draw; no other training of the run has it."""
    reach: float = 0.0
    """How far a gradient of 1 moves a weight in the end, see `trainer.optimizers.reach`; 0: not
    known."""
    update: Update | None = None
    """For the one Term that is over the current rows: it may update them in the backward pass;
    none: leave their gradient."""
    anchor: OldClassifier | None = None
    """Of the model to stay compatible with, for Terms that want `FrozenRows`."""
    part: Part | None = None
    """Where this is a part of the global batch only."""
    drawn: Drawn | None = None
    """What went through the network beside the images, for recipes with `Recipe.enters`."""
    expert: torch.Tensor | None = None
    """[B, d] a temporary expert's embeddings of the images, for Terms that want `Expert`."""
    within: Within | None = None
    """What the images are at the same place, for Terms that want `AnswersWithin`."""

    @property
    def every(self) -> torch.Tensor:
        """The labels of the whole global batch, of which `labels` may be a part."""
        return self.labels if self.part is None else self.part.labels

    def once(self, penalty: torch.Tensor) -> tuple[torch.Tensor, int]:
        """What a Term returns for a `penalty` that is no sum over samples, such as one on
        `parameters`: a scalar, on every rank the same.

        It counts once an update. A batch that goes through in parts meets it in each of them, with
        the same parameters, so each part takes the share of the batch's samples that it has.
        """
        return penalty * len(self.labels), len(self.every)
