"""LUCIR (Hou et al. 2019): cosines with a learned scale, directions kept, old from new apart.

Authors' settings: CIFAR-100 with ResNet-32, 160 epochs, learning rate 0.1 divided by 10 after 80
and 120, weight decay 5e-4, batches of 128; ImageNet with ResNet-18, 90 epochs, divided after 30
and 60, weight decay 1e-4, `weight` 10; 20 exemplars an identity by herding. Their released code
holds old rows still while it trains, as `hold_old_rows` does. Its fine-tuning on balanced data, on
ImageNet only, is `fine_tune`.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from trainer.backbones import EmbedderSettings
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.margins import Cosine
from trainer.heads.neighbourhood import activations, sharded_top_k
from trainer.heads.rows import ShardedRows
from trainer.methods.forward import Forward, Over
from trainer.methods.memory import Remembering
from trainer.methods.recipe import Recipe, Start, Term
from trainer.methods.spelling import unspelled
from trainer.methods.terms import Classify
from trainer.methods.wants import Answers, Want


@dataclass(frozen=True)
class KeepDirections:
    """1 - cos between the previous model's embedding of an image and this one's, of all images,
    times sqrt(C_old / C_new), as the authors' released code has it: the more there is to keep and
    the less to learn, the more it weighs (the less-forget constraint)."""

    weight: float
    """lambda_base."""
    adapted: float = unspelled(1.0)
    """The root, once it is known how many classes are old and new; in fingerprints by these."""
    name: str = unspelled("keepdirections")
    over: ClassVar[Over | None] = None
    wants: ClassVar[tuple[Want, ...]] = (Answers(embeddings=True),)

    def at(self, old_rows: int) -> "KeepDirections":
        return self

    def among(self, old_rows: int, new_rows: int) -> "KeepDirections":
        return replace(self, adapted=math.sqrt(old_rows / new_rows))

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        old = forward.teacher.embeddings
        assert old is not None
        kept = F.cosine_similarity(forward.embeddings, old, dim=1)
        return (1 - kept).sum() * self.adapted, len(forward.every)


@dataclass(frozen=True)
class SetApart:
    """Margin ranking (inter-class separation): an image of an old identity is to be nearer to its
    own row than to any new one, by `margin`.

    Of each such image the mean of max(0, margin - cos(own) + cos(new)) over its `hardest` new
    rows, and of them the mean over the batch's images of old identities, as in the authors'
    released code: the mean over pairs. Without such an image it is 0.
    """

    weight: float
    hardest: int
    """K, the new rows nearest to the image."""
    margin: float
    """m, of cosines."""
    name: str = unspelled("setapart")
    over: ClassVar[Over | None] = "all"
    wants: ClassVar[tuple[Want, ...]] = ()

    def at(self, old_rows: int) -> "SetApart | None":
        return self if old_rows else None

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, torch.Tensor]:
        rows, new = forward.rows["all"], forward.rows["new"]
        is_old, every_is_old = forward.labels < new.first, forward.every < new.first
        directions = F.normalize(forward.embeddings)
        with torch.no_grad():
            unit = ShardedRows(new.first, new.last, F.normalize(new.weight), new.ranks)
            nearest, _ = sharded_top_k(directions.detach(), unit, self.hardest)
        pairs = torch.cat([forward.labels[:, None], nearest], dim=1)
        cosines = activations(directions, rows, pairs, normalised=True)
        losses = (self.margin - cosines[:, :1] + cosines[:, 1:]).clamp_min(0).mean(dim=1)
        # images of new identities stay and weigh nothing, so that every shape is the batch's
        return (losses * is_old).sum(), every_is_old.sum().clamp_min(1)


class LUCIR(Remembering):
    """LUCIR: a cosine classifier over all rows, old directions kept, old from new set apart.

    Its network and classifier are the run's with eta times the cosine as logits, and without a ReLU
    before the embedding, from the first step on. New rows are imprinted.
    """

    kind: Literal["lucir"] = "lucir"
    over: Literal["all"] = "all"
    """The classifier rows that images are told apart by: those of all identities so far."""
    weight: float = Field(default=5.0, ge=0)
    """lambda_base, weight of keeping directions, before it is multiplied by
    sqrt(old identities / new identities)."""
    ranking: float = Field(default=1.0, ge=0)
    """Weight of setting old identities apart from new ones."""
    hardest: int = Field(default=2, ge=1)
    """K, new rows that each image of an old identity is set apart from."""
    margin: float = Field(default=0.5, ge=0)
    """m, by which its cosine with its own row is to be the larger."""
    hold_old_rows: bool = False
    """Old identities' rows stay as they are, as in the authors' released code; else they are
    trained."""

    def network(self, usual: EmbedderSettings, step: int) -> EmbedderSettings:
        # behind a projection numbers have both signs anyway
        usual = super().network(usual, step)
        last_relu = usual.last_relu and usual.projection != "none"
        return usual.model_copy(update={"activation": "cosine", "last_relu": last_relu})

    def loss(self, usual: ClassifierSettings, step: int) -> ClassifierSettings:
        return usual.model_copy(update={"margin": Cosine(), "sampled": 1.0})

    def recipe(self) -> Recipe:
        terms: tuple[Term, ...] = (
            Classify(over=self.over),
            KeepDirections(self.weight),
            SetApart(self.ranking, self.hardest, self.margin),
            *self.distilled(),
        )
        start = Start(old_rows="held" if self.hold_old_rows else "previous", new_rows="imprinted")
        return Recipe(
            start=start,
            images=self.images(),
            terms=terms,
            predict=self.rule(),
            fine_tune=self.fine_tune,
        )
