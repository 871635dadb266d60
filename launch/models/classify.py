"""Which class images are of, by a model and the decision beside it; no run or dataset is needed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from data_shards.settings import InputError
from launch.inference.pictures import Embedded, Picture, PictureEmbedder
from monitoring.run_folder import decision_beside
from trainer.decisions import Decision
from trainer.heads.collectives import Ranks
from trainer.model import Model

SHOWN = 5
"""The classes that are told of each image."""


@dataclass(frozen=True)
class Classified:
    """What a model says of an image."""

    image: Path | None
    """Its file; none: it was given as pixels."""
    classes: tuple[tuple[str, float], ...] = ()
    """The likeliest ones with their scores, the one decided for first."""
    score: str = "probability"
    """What these scores are, see `trainer.decisions.Rule`."""
    refused: str = ""
    """Why the image is not classified, if it is not."""

    def values(self) -> dict[str, Any]:
        """It as plain values."""
        if self.refused:
            return {"image": str(self.image), "refused": self.refused}
        found = [{"class": name, self.score: value} for name, value in self.classes]
        return {"image": str(self.image), "classes": found}


class Classifier:
    """A model ready to classify images, by the rule of its decision."""

    def __init__(self, model: Model, embedder: PictureEmbedder | None = None) -> None:
        """Reads the decision beside `model`; without one, the largest logit decides. An `embedder`
        of this model may be there already.

        Raises InputError for a model that knows no class, or another model's decision.
        """
        if not model.rows:
            raise InputError(
                f"{model.folder} knows no class, being adopted without its classifier: adopt it "
                "again with --classifier and --names"
            )
        beside = decision_beside(model.folder)
        self._model = model
        self.decision = Decision.open(beside, model) if beside.exists() else Decision()
        self._embedder = embedder or PictureEmbedder(model)
        self._directions = model.frozen_rows(Ranks()).weight.detach().float()
        self._names = model.names()

    def __call__(self, images: Sequence[Picture]) -> Iterator[list[Classified]]:
        """What the model says of `images`, a batch at a time, in their order: each is of the class
        that `evaluate` would count."""
        for batch, embedded in self._embedder(images):
            yield self._classified(batch, embedded)

    @torch.inference_mode()
    def _classified(self, batch: Sequence[Picture], embedded: Embedded) -> list[Classified]:
        told: Iterator[tuple[tuple[str, float], ...]] = iter(())
        if len(embedded.vectors):
            scores = self.decision.scores(self._model, embedded.vectors, self._directions)
            # stable: of equal scores the first class counts, as in an evaluation
            order = scores.sort(dim=1, descending=True, stable=True)
            tops = (part[:, :SHOWN].tolist() for part in (order.indices, order.values))
            told = (
                tuple((self._names[row], score) for row, score in zip(*both, strict=True))
                for both in zip(*tops, strict=True)
            )
        score = self.decision.rule.score
        files = [image if isinstance(image, Path) else None for image in batch]
        return [
            Classified(file, refused=embedded.refused[place])
            if place in embedded.refused
            else Classified(file, next(told), score)
            for place, file in enumerate(files)
        ]


def classes_table(found: Iterable[Classified]) -> Table:
    """A table of the likeliest classes of one classifier's images."""
    found = [one for one in found if one.classes]
    score = found[0].score if found else "probability"
    written = "{:.2%}" if score == "probability" else "{:.4f}"
    table = Table("image", "class", score)
    table.columns[2].justify = "right"
    for one in found:
        for place, (name, value) in enumerate(one.classes):
            table.add_row("" if place else str(one.image), name, written.format(value))
        table.add_section()
    return table
