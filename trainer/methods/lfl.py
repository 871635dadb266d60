"""Less-forgetting learning, as the CRL paper compares with it."""

from typing import Literal

from trainer.methods.recipe import MethodSettings, Recipe
from trainer.methods.terms import Classify, MatchEmbeddings


class LessForgetting(MethodSettings):
    """LFL: the new embedding stays near the previous model's, in Euclidean distance."""

    kind: Literal["lfl"] = "lfl"
    weight: float = 0.1
    """lambda, weight of the distance."""

    def recipe(self) -> Recipe:
        return Recipe(terms=(Classify(), MatchEmbeddings(self.weight)))
