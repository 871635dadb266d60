"""Decision rules: which class an image is of, from its embedding and its logits.

A rule is data. What it needs beside the model, such as class means, is a `decision` folder of the
learning step beside the model's: the model itself is never changed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch.nn import functional as F

from data_shards.settings import InputError
from trainer.checkpoint import Folder
from trainer.checkpoint.format import CARD
from trainer.heads.collectives import Ranks
from trainer.model import Model

_LOGITS = 1 << 24
"""Most logits held at a time."""
Tensors = Mapping[str, torch.Tensor]


class Rule(Protocol):
    """A decision rule; frozen dataclasses, so that they can be compared."""

    @property
    def name(self) -> str:
        """What files and people call it."""

    @property
    def score(self) -> str:
        """What its scores are, as people are told: probability, similarity."""

    def scores(
        self, embeddings: torch.Tensor, logits: torch.Tensor, prepared: Tensors
    ) -> torch.Tensor:
        """[n, C] what `score` names, of each class; the largest decides.

        `embeddings` are [n, d], `logits` [n, C], `prepared` the decision's tensors.
        """


@dataclass(frozen=True)
class LargestLogit:
    """The class with the largest logit."""

    name: ClassVar[str] = "largest-logit"
    score: ClassVar[str] = "probability"

    def scores(
        self, embeddings: torch.Tensor, logits: torch.Tensor, prepared: Tensors
    ) -> torch.Tensor:
        return logits.softmax(dim=1)


@dataclass(frozen=True)
class NearestMean:
    """The class whose exemplars' mean is nearest (iCaRL, Alg. 1).

    ``means`` [C, d]: of each exemplar's embedding and, where training mirrors images, its mirror
    image's, of unit length each, the mean, again of unit length. Scores are cosines with them,
    between -1 and 1.
    """

    name: ClassVar[str] = "nearest-mean"
    score: ClassVar[str] = "similarity"

    def scores(
        self, embeddings: torch.Tensor, logits: torch.Tensor, prepared: Tensors
    ) -> torch.Tensor:
        # All of unit length: the squared distance is 2 - 2 cos, so that the nearest mean has the
        # largest cosine. No softmax: the rule has no temperature, and shares would be nearly even.
        return F.normalize(embeddings) @ prepared["means"].T


@dataclass(frozen=True)
class LargestOfHeads:
    """Every learning step's classes are a head of their own: the largest probability over heads.

    ``ends`` [T]: where each head's classes end.
    """

    name: ClassVar[str] = "largest-of-heads"
    score: ClassVar[str] = "probability"

    def scores(
        self, embeddings: torch.Tensor, logits: torch.Tensor, prepared: Tensors
    ) -> torch.Tensor:
        ends = prepared["ends"].tolist()
        heads = [logits[:, a:b].softmax(dim=1) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        return torch.cat(heads, dim=1) / len(heads)


@dataclass(frozen=True)
class BiasCorrected:
    """The class with the largest logit, each corrected by a line (BiC, Eq. 5).

    ``alpha`` and ``beta`` [C]: of each class the line that its learning step was found to need.
    """

    decay: float = 1e-4
    """What held the two numbers near 1 and 0 when they were fitted, see `trainer.bias.fit`."""
    name: ClassVar[str] = "bias-corrected"
    score: ClassVar[str] = "probability"

    def scores(
        self, embeddings: torch.Tensor, logits: torch.Tensor, prepared: Tensors
    ) -> torch.Tensor:
        corrected = logits * prepared["alpha"] + prepared["beta"]
        return corrected.softmax(dim=1)


RULES: dict[str, type[Any]] = {
    rule.name: rule for rule in (LargestLogit, NearestMean, LargestOfHeads, BiasCorrected)
}
"""By their names in files."""


@dataclass(frozen=True)
class Decision:
    """A model's rule with what it needs."""

    rule: Rule = LargestLogit()
    prepared: Tensors = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, model: Model) -> "Decision":
        """Reads and verifies a decision folder of `model`.

        Raises DamagedError, InputError when it was made for another model.
        """
        saved = Folder.at(folder)
        saved.verify()
        card = saved.card("decision")
        with saved.intact(CARD):
            rule, of = RULES[card["rule"]](**card["settings"]), card["model"]
        if of != model.fingerprint:
            raise InputError(
                f"{folder} is the decision of model {str(of)[:40]}, and {model.folder} is "
                f"{model.fingerprint}: put the one that was made with it there, or move it away"
            )
        found = cls(rule, saved.tensors("prepared"))
        with saved.intact("prepared.safetensors"):
            # tried once, so that tensors of wrong shapes are found before there is an image
            nothing = torch.zeros(1, model.settings.dimension), torch.zeros(1, model.rows)
            if rule.scores(*nothing, found.prepared).shape != (1, model.rows):
                raise ValueError("it knows another number of classes")
        return found

    def classes(self, model: Model, embeddings: torch.Tensor) -> torch.Tensor:
        """[n] int64, the class decided for each of `embeddings` [n, d] of `model`.

        Of equal scores the first class counts.
        """
        directions = model.frozen_rows(Ranks()).weight.detach().float()
        block = max(1, _LOGITS // max(1, len(directions)))
        found = [
            self.scores(model, part, directions).argmax(dim=1) for part in embeddings.split(block)
        ]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)

    def scores(
        self, model: Model, embeddings: torch.Tensor, directions: torch.Tensor
    ) -> torch.Tensor:
        """[n, C] the rule's scores, of `embeddings` [n, d] and the rows as logits see them."""
        logits = model.classifier.inputs(embeddings) @ directions.T
        return self.rule.scores(embeddings, logits, self.prepared)


def decision_files(
    rule: Any, prepared: Tensors, model: Model
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Files and card of the decision folder of `model`."""
    card = {
        "kind": "decision",
        "rule": rule.name,
        "settings": asdict(rule),
        "model": model.fingerprint,
        "classes": model.rows,
    }
    return {"prepared": dict(prepared)}, card
