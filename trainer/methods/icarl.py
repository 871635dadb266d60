"""iCaRL (Rebuffi et al. 2017): every class a yes or no, old ones as the old model says.

Authors' settings for CIFAR-100, of their released code: ResNet-32, learning rate 2, divided by 5
after epochs 49 and 63 of 70, batches of 128, 2,000 exemplars by herding. Their penalty is 1e-5
times the squared weights, whose gradient is that of a `weight_decay` of 2e-5.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field

from trainer.heads.binary_cross_entropy import binary_cross_entropy
from trainer.heads.margin_loss import ClassifierSettings, check_labels
from trainer.heads.margins import Softmax
from trainer.methods.forward import Forward, Over
from trainer.methods.memory import MemorySettings, Remembering
from trainer.methods.recipe import Recipe
from trainer.methods.spelling import unspelled
from trainer.methods.wants import Answers, Want


@dataclass(frozen=True)
class ClassifyEach:
    """Sigmoid binary cross-entropy over all rows (iCaRL, Alg. 3).

    New rows are to say which class an image is of, old ones what the previous model's sigmoids
    said, of exemplars, too. The mean over samples *and* rows, as in the authors' code: a sum over
    rows would ask for a learning rate smaller by their number. The authors' head has rows for all
    classes from the start, ours has those that were seen.
    """

    weight: float = 1.0
    over: Over = "all"
    """all: with a previous model. new: without one, all rows are new."""
    name: str = unspelled("classify")

    @property
    def wants(self) -> tuple[Want, ...]:
        return (Answers(embeddings=True),) if self.over == "all" else ()

    def at(self, old_rows: int) -> "ClassifyEach":
        return self if old_rows else replace(self, over="new")

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        rows, settings = forward.rows[self.over], forward.classifier.settings
        check_labels(forward.labels, rows)
        place, owned = rows.local(forward.labels)
        targets = forward.embeddings.new_zeros(len(place), len(rows.weight))
        if targets.shape[1]:  # a rank may own no row
            targets.scatter_(1, place[:, None], owned[:, None].to(targets.dtype))
        if self.over == "all":
            teacher = forward.teacher
            assert teacher.embeddings is not None and teacher.rows is not None
            # the rank's rows ascend, so its old ones are the first, of the teacher's as of ours
            said = settings.inputs(teacher.embeddings) @ teacher.rows.weight.T
            targets[:, : said.shape[1]] = said.sigmoid()
        losses = binary_cross_entropy(
            inputs=settings.inputs(forward.embeddings),
            weight=settings.directions(rows.weight),
            targets=targets,
            count=rows.last - rows.first,
            ranks=rows.ranks,
        )
        return losses.sum(), len(forward.every)


class ICaRL(Remembering):
    """iCaRL: binary cross-entropy with the previous model's sigmoids, exemplars, nearest mean.

    Its rows have sigmoids from the first step on, which is therefore not that of other methods.
    Logits are linear and every row takes part, whatever `classifier` says.
    """

    kind: Literal["icarl"] = "icarl"
    over: Literal["all"] = "all"
    """The classifier rows that images are told apart by: those of all identities so far."""
    weight: float = Field(default=1.0, gt=0)
    """Of the loss. The authors' learning rate is 2; beside methods that learn at 0.1, SGD with a
    weight of 20 and a `weight_decay` of 4e-4 makes the same updates."""
    memory: MemorySettings
    """Exemplars of old identities, trained on with the new images."""
    predict: Literal["largest-logit", "nearest-mean"] = "nearest-mean"
    """Which class the model decides for: the one whose exemplars' mean embedding is nearest
    (iCaRL, Alg. 1), or the one with the largest logit (papers call that hybrid1, or iCaRL-CNN)."""

    def loss(self, usual: ClassifierSettings, step: int) -> ClassifierSettings:
        return usual.model_copy(update={"margin": Softmax(), "sampled": 1.0})

    def recipe(self) -> Recipe:
        return Recipe(
            images=self.images(),
            terms=(ClassifyEach(self.weight), *self.distilled()),
            predict=self.rule(),
            fine_tune=self.fine_tune,
        )
