"""Which class images are of, by a model and the decision beside it; no run or dataset is needed."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from data_shards.augmentation import no_augmentation
from data_shards.cores import cores
from data_shards.images import Checked, ImageSettings, Unfit, normalise
from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.settings import InputError
from data_shards.sources import Refusal
from data_shards.sources.folder import entries_below
from data_shards.sources.listing import picture_of
from launch.inference.embed import fast_embedder
from monitoring.run_folder import decision_beside
from trainer.adopted import AdoptedSettings
from trainer.decisions import Decision
from trainer.heads.collectives import Ranks
from trainer.model import Model
from trainer.teacher import TeacherSettings

SHOWN = 5
"""The classes that are told of each image."""
_Read = tuple[bytes, Checked] | str
"""What to decode of an image, or why it is refused."""
_PIXELS = 1 << 26
"""Most pixels decoded at a time, more or less: one picture may have as many."""


@dataclass(frozen=True)
class Classified:
    """What a model says of an image."""

    image: Path
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


def images_at(given: Sequence[Path]) -> list[Path]:
    """The files that are `given`, and those below given folders by name, without hidden ones.

    Raises InputError for a path that leads nowhere, and where there is no file at all.
    """
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise InputError(f"{path} does not exist: give images, or folders of images")
        if path.is_dir():
            below = (p for p in entries_below(path) if isinstance(p, Path))
            found += [p for p in below if not p.name.startswith(".") and not p.is_dir()]
        else:
            found.append(path)
    if not found:
        raise InputError(f"there is no image in {', '.join(map(str, given))}: give other folders")
    return found


@dataclass(frozen=True)
class _Loose:
    """Images that are no dataset's, each of its own size; see `data_shards.pipeline.Stored`."""

    location: str
    manifest: dict[str, Any]


class Classifier:
    """A model ready to classify images, by the rule of its decision."""

    def __init__(self, model: Model) -> None:
        """Reads the decision beside `model`; without one, the largest logit decides.

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
        self._settings = TeacherSettings()
        self._embedder = fast_embedder(model, self._settings)
        self._directions = model.frozen_rows(Ranks()).weight.detach().float()
        self._names = model.names()
        adopted = model.settings if isinstance(model.settings, AdoptedSettings) else None
        self._data = PipelineSettings(
            image_size=adopted.pixels.size if adopted else model.image_size, centre=model.centre
        )

    def __call__(self, images: Sequence[Path]) -> Iterator[list[Classified]]:
        """What the model says of `images`, a batch at a time, in their order.

        Each is made what an import would store of it, and decoded and scaled as datasets' images
        are, so that it is of the class that `evaluate` would count.
        """
        with ThreadPoolExecutor(cores()) as pool:
            size = self._settings.batch
            for batch in (images[i : i + size] for i in range(0, len(images), size)):
                yield self._classified(batch, list(pool.map(_checked, batch)))

    @torch.inference_mode()
    def _classified(self, batch: Sequence[Path], checked: Sequence[_Read]) -> list[Classified]:
        pixels: list[torch.Tensor | str] = []
        for group in _groups(checked):
            pixels += self._decoded(group)
        good = [number for number, found in enumerate(pixels) if not isinstance(found, str)]
        said: list[list[Any]] = []
        if good:
            # filled up, as in an evaluation: what a model says depends on no batch's size
            filled = [*good, *[good[-1]] * (self._settings.batch - len(good))]
            stacked = torch.stack([pixels[number] for number in filled])  # type: ignore[misc]
            vectors = self._embedder(stacked).float()[: len(good)]
            scores = self.decision.scores(self._model, vectors, self._directions)
            # stable: of equal scores the first class counts, as in an evaluation
            order = scores.sort(dim=1, descending=True, stable=True)
            tops = (part[:, :SHOWN].tolist() for part in (order.indices, order.values))
            said = [list(zip(*both, strict=True)) for both in zip(*tops, strict=True)]
        told = dict(zip(good, said, strict=True))
        score = self.decision.rule.score
        return [
            Classified(image, refused=found)
            if isinstance(found, str)
            else Classified(image, tuple((self._names[row], s) for row, s in told[number]), score)
            for number, (image, found) in enumerate(zip(batch, pixels, strict=True))
        ]

    def _decoded(self, images: Sequence[_Read]) -> list[torch.Tensor | str]:
        """The pixels [3, H, W] uint8 of each image, or why there are none."""
        found: list[torch.Tensor | str] = [one if isinstance(one, str) else "" for one in images]
        jpegs = {n: one[0] for n, one in enumerate(images) if not isinstance(one, str)}
        if not jpegs:
            return found
        count = len(jpegs)
        request = Request(
            np.arange(count), no_augmentation(count), [memoryview(jpeg) for jpeg in jpegs.values()]
        )
        loose = _Loose("the images", {"image_size": None})
        try:
            stream = ImageStream(loose, iter([request]), count, self._data, augmented=False)
            ((_, decoded),) = stream
        except RuntimeError as error:
            # DALI gives a whole batch up for one image that it cannot decode, and Pillow could
            if count == 1:
                return [one or f"damaged: {_first_line(error)}" for one in found]
            return [pixels for one in images for pixels in self._decoded([one])]
        for number, pixels in zip(jpegs, decoded, strict=True):
            found[number] = pixels
        return found


def _checked(image: Path) -> _Read:
    """The bytes that an import would store of an image, or why it would refuse it."""
    content = picture_of(image, image.name, "")
    if isinstance(content, Refusal):
        return f"{content.reason}: {content.why}"
    checked = normalise(content, ImageSettings())
    if isinstance(checked, Unfit):
        return f"{checked.reason}: {checked.why}"
    return (content if checked.jpeg is None else checked.jpeg), checked


def _groups(
    images: Sequence[_Read],
) -> Iterator[Sequence[_Read]]:
    """`images` in runs of at most `_PIXELS` or one image, which are decoded together."""
    group: list[_Read] = []
    held = 0
    for one in images:
        pixels = 0 if isinstance(one, str) else one[1].height * one[1].width
        if group and held + pixels > _PIXELS:
            yield group
            group, held = [], 0
        group.append(one)
        held += pixels
    yield group


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


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
