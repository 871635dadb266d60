"""The toy paper's method: finetune, with the embedder kept near an expert's."""

from dataclasses import dataclass
from typing import Literal

import torch
from trainer.methods.toy_want import ToyExpert

from trainer.methods.forward import Forward
from trainer.methods.recipe import MethodSettings, Recipe
from trainer.methods.terms import Classify
from trainer.methods.wants import Want


@dataclass(frozen=True)
class NearExpert:
    """Half the squared distance of the embedder's parameters to the expert's."""

    weight: float
    iterations: int
    name: str = "nearexpert"
    over: None = None

    @property
    def wants(self) -> tuple[Want, ...]:
        return (ToyExpert(self.iterations),)

    def at(self, old_rows: int) -> "NearExpert":
        return self

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        expert = forward.loaded[ToyExpert]
        apart = [(own - expert[name]).square().sum() for name, own in forward.parameters.items()]
        return forward.once(torch.stack(apart).sum() / 2)


class Toy(MethodSettings):
    """Finetune near an expert."""

    kind: Literal["toy"] = "toy"
    weight: float = 0.001
    """Of the distance."""
    iterations: int = 20
    """Of the expert's training."""

    def recipe(self) -> Recipe:
        return Recipe(terms=(Classify(), NearExpert(self.weight, self.iterations)))
