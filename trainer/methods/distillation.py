"""Learning without forgetting, and the CRL paper's flexible knowledge distillation."""

from typing import Literal

from pydantic import Field

from trainer.methods.memory import Remembering
from trainer.methods.recipe import Recipe
from trainer.methods.terms import Classify, Distill


class LearningWithoutForgetting(Remembering):
    """LwF: cross-entropy from the previous model's softmax over all old identities (Eq. 2)."""

    kind: Literal["lwf"] = "lwf"
    weight: float = Field(default=1.0, ge=0)
    """lambda, weight of the distillation."""
    temperature: float = Field(default=2.0, gt=0)
    """tau of both softmaxes."""

    def recipe(self) -> Recipe:
        distill = Distill(self.weight, None, 0.0, self.temperature, divergence="cross_entropy")
        return Recipe(
            images=self.images(),
            terms=(Classify(over=self.over), distill, *self.distilled()),
            predict=self.rule(),
            fine_tune=self.fine_tune,
        )


class FlexibleDistillation(Remembering):
    """FKD (CRL paper, Sec. 4): neighbourhood selection and consistency relaxation.

    Basic is `neighbours` none and `relaxation` 0; +NS sets the first, +CR the second.
    """

    kind: Literal["fkd"] = "fkd"
    weight: float = Field(default=1.0, ge=0)
    """lambda, weight of the distillation."""
    neighbours: int | None = Field(default=200, ge=1)
    """K, old identities distilled for each image; none: all."""
    relaxation: float = Field(default=0.01, ge=0)
    """beta, share of the teacher's entropy left free (Eq. 5)."""
    temperature: float = Field(default=2.0, gt=0)
    """tau of both softmaxes."""

    def recipe(self) -> Recipe:
        distill = Distill(self.weight, self.neighbours, self.relaxation, self.temperature)
        return Recipe(
            images=self.images(),
            terms=(Classify(over=self.over), distill, *self.distilled()),
            predict=self.rule(),
            fine_tune=self.fine_tune,
        )
