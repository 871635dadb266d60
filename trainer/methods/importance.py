"""EWC and MAS: parameters that matter to earlier steps are held near where those left them.

Elastic weight consolidation (Kirkpatrick et al. 2017) and memory aware synapses (Aljundi et al.
2018) differ in how they measure a parameter's importance, see `trainer.importance`.

Both add importances up over the steps and pull towards the latest parameters alone. MAS is defined
so. EWC as first published keeps a penalty around each earlier step's parameters: it counts the
first steps again in each later one, and remembers a network a step. The form here is its correction
(Huszar 2018; "online EWC" of Schwarz et al. 2018, with gamma = 1), and takes two numbers a
parameter however many steps there are.

The penalty is on the embedder alone. Old classes' rows need none: a softmax over the step's own
rows never moves them. New ones have no past.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from data_shards.settings import InputError
from trainer.checkpoint import Folder
from trainer.decisions import LargestLogit, LargestOfHeads, Rule
from trainer.heads.collectives import Ranks
from trainer.importance import Consolidated, Measure, Tensors
from trainer.methods.forward import Forward, Over
from trainer.methods.recipe import MethodSettings, Recipe
from trainer.methods.spelling import unspelled
from trainer.methods.terms import Classify
from trainer.methods.wants import Want

CARD = "consolidated"
"""The kind of folder that the importances are in."""


@dataclass(frozen=True)
class Importance(Want):
    """How much each parameter matters to the steps before, and what it was."""

    of: Measure

    def load(self, path: Path, ranks: Ranks, device: torch.device) -> Consolidated:
        """Raises DamagedError, and InputError for importances of another measure."""
        folder = Folder.at(path)
        card = folder.card(CARD)
        if card.get("of") != self.of:
            raise InputError(
                f"{path} holds importances of another measure than {self.of}, and they cannot be "
                "added up: give the method the settings that it had there"
            )
        held = [
            {name: tensor.to(device) for name, tensor in folder.tensors(file).items()}
            for file in ("importances", "parameters")
        ]
        return Consolidated(*held)

    def imagined(self, parameters: Tensors, rows: int, shape: tuple[int, ...]) -> Consolidated:
        copies = [{n: torch.empty_like(p) for n, p in parameters.items()} for _ in range(2)]
        return Consolidated(*copies)


def consolidated_files(found: Consolidated, of: Measure) -> tuple[dict[str, Any], dict[str, Any]]:
    """Files and card of the folder that `Importance` loads."""
    files = {"importances": found.importance, "parameters": found.parameters}
    return files, {"kind": CARD, "of": of}


@dataclass(frozen=True)
class Consolidate:
    """sum_i Omega_i (theta_i - theta*_i)^2 over the embedder's parameters (Aljundi et al.).

    Counted once an update, whatever the batch's parts and the number of ranks. An importance is cut
    where gradient descent would jump beyond theta*_i: to what takes the parameter back there by one
    gradient with all that momentum makes of it, 2 weight Omega_i rate / (1 - momentum) = 1. So the
    penalty takes up little of what curvature a learning rate can stand. Published code has a
    constant for this limit, or none, and then diverges at class-incremental learning rates.
    """

    weight: float
    of: Measure
    name: str = unspelled("consolidate")
    over: ClassVar[Over | None] = None

    @property
    def wants(self) -> tuple[Want, ...]:
        return (Importance(self.of),)

    def at(self, old_rows: int) -> "Consolidate":
        return self

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        held: Consolidated = forward.loaded[Importance]
        jump = 2 * self.weight * forward.reach
        most = 1 / jump if jump else math.inf
        pulls = [
            (held.importance[name].clamp(max=most) * (own - held.parameters[name]).square()).sum()
            for name, own in forward.parameters.items()
        ]
        return forward.once(torch.stack(pulls).sum())


class Consolidating(MethodSettings):
    """Of methods that hold parameters by their importance. Each step's classes are a head of
    their own, so there is no memory."""

    predict: Literal["largest-of-heads", "largest-logit"] = "largest-of-heads"
    """Which class the model decides for: the one with the largest probability within its step's
    classes, or the one with the largest logit of all."""

    def consolidating(self, weight: float, of: Measure) -> Recipe:
        """The recipe with so much of the penalty."""
        rule: Rule = LargestOfHeads() if self.predict == LargestOfHeads.name else LargestLogit()
        return Recipe(terms=(Classify(), Consolidate(weight, of)), predict=rule)


class ElasticWeightConsolidation(Consolidating):
    """EWC: the Fisher information pulls, by half of lambda (Kirkpatrick et al., Eq. 3)."""

    kind: Literal["ewc"] = "ewc"
    weight: float = Field(default=50.0, ge=0)
    """lambda. No published value carries over: most code squares gradients of batch means, and so
    finds a Fisher information too small by about the batch's size. This is the 5,000 of a common
    benchmark (FACIL, Masana et al. 2022) over a batch of 100."""
    classes: Literal["own", "expected"] = "own"
    """The y of log p(y | x), whose gradients are squared. own: each image's class, which is the
    empirical Fisher information, as most code has it. expected: every class by its probability,
    the Fisher information itself, for as many backward passes an image as the step has classes.
    Where the network is certain and right both vanish, but the empirical one sooner: for a
    probability of 1 - e, as the square of e (Kunstner et al. 2019, Martens 2020)."""

    def recipe(self) -> Recipe:
        measure: Measure = "empirical-fisher" if self.classes == "own" else "fisher"
        return self.consolidating(self.weight / 2, measure)


class MemoryAwareSynapses(Consolidating):
    """MAS: what pulls is how much a parameter moves the squared length of the network's output.

    The output is the logits of the step's own classes, as in the authors' experiments with a head
    a task. The embedding's length would do where there are no classes, but a classifier does not
    see what of the embedding no row looks at, and one of cosines does not see its length.
    """

    kind: Literal["mas"] = "mas"
    weight: float = Field(default=1.0, ge=0)
    """lambda; the paper's value."""

    def recipe(self) -> Recipe:
        return self.consolidating(self.weight, "sensitivity")
