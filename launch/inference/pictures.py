"""Pictures that are no dataset's, embedded as an import and `perennial embed` would do it."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.augmentation import no_augmentation
from data_shards.cores import cores
from data_shards.images import ImageSettings, Unfit, normalise, png_of
from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.settings import InputError
from data_shards.sources import Refusal
from data_shards.sources.folder import entries_below
from data_shards.sources.listing import picture_of
from launch.inference.embed import fast_embedder
from trainer.adopted import AdoptedSettings
from trainer.model import Model
from trainer.teacher import TeacherSettings

Picture = Path | NDArray[np.uint8]
"""A file, read as an import would store it, or pixels [h, w, 3], which stay as they are."""
_Read = tuple[bytes, int] | str
"""What to decode of a picture and how many pixels that makes, or why it is refused."""
_PIXELS = 1 << 26
"""Most pixels decoded at a time, more or less: one picture may have as many."""


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


@dataclass(frozen=True)
class Embedded:
    """A batch of pictures, some of which may be refused."""

    refused: dict[int, str]
    """Why, by their place in the batch."""
    vectors: torch.Tensor
    """[m, d] of the others, not normalised."""


class PictureEmbedder:
    """A model ready to embed pictures."""

    def __init__(self, model: Model) -> None:
        """Raises InputError for a damaged model."""
        self.settings = TeacherSettings()
        self.network = fast_embedder(model, self.settings)
        """Makes vectors [b, d] of images [b, 3, H, W] uint8, b being `settings.batch`."""
        adopted = model.settings if isinstance(model.settings, AdoptedSettings) else None
        self._data = PipelineSettings(
            image_size=adopted.pixels.size if adopted else model.image_size, centre=model.centre
        )

    def __call__(self, pictures: Sequence[Picture]) -> Iterator[tuple[Sequence[Picture], Embedded]]:
        """`pictures` and their vectors, a batch at a time.

        Each is made what an import would store of it, and decoded and scaled as datasets' images
        are, so that its vector is the one that it would have there.
        """
        with ThreadPoolExecutor(cores()) as pool:
            size = self.settings.batch
            for batch in (pictures[i : i + size] for i in range(0, len(pictures), size)):
                yield batch, self._embedded(list(pool.map(_checked, batch)))

    @torch.inference_mode()
    def _embedded(self, checked: Sequence[_Read]) -> Embedded:
        pixels: list[torch.Tensor | str] = []
        for group in _groups(checked):
            pixels += self._decoded(group)
        refused = {place: found for place, found in enumerate(pixels) if isinstance(found, str)}
        good = [found for found in pixels if not isinstance(found, str)]
        if not good:
            return Embedded(refused, torch.empty(0, 0))
        # filled up, as in an evaluation: what a model says depends on no batch's size
        filled = [*good, *[good[-1]] * (self.settings.batch - len(good))]
        return Embedded(refused, self.network(torch.stack(filled)).float()[: len(good)])

    def _decoded(self, images: Sequence[_Read]) -> list[torch.Tensor | str]:
        """The pixels [3, H, W] uint8 of each image, or why there are none."""
        found: list[torch.Tensor | str] = [one if isinstance(one, str) else "" for one in images]
        encoded = {n: one[0] for n, one in enumerate(images) if not isinstance(one, str)}
        if not encoded:
            return found
        count = len(encoded)
        request = Request(np.arange(count), no_augmentation(count), list(encoded.values()))
        loose = _Loose("the images", {"image_size": None})
        try:
            stream = ImageStream(loose, iter([request]), count, self._data, augmented=False)
            ((_, decoded),) = stream
        except RuntimeError as error:
            # DALI gives a whole batch up for one image that it cannot decode, and Pillow could
            if count == 1:
                return [one or f"damaged: {_first_line(error)}" for one in found]
            return [pixels for one in images for pixels in self._decoded([one])]
        for number, pixels in zip(encoded, decoded, strict=True):
            found[number] = pixels
        return found


def _checked(picture: Picture) -> _Read:
    """The bytes that an import would store of a picture, or why it would refuse it."""
    if not isinstance(picture, Path):
        return png_of(picture), picture.shape[0] * picture.shape[1]
    content = picture_of(picture, picture.name, "")
    if isinstance(content, Refusal):
        return f"{content.reason}: {content.why}"
    checked = normalise(content, ImageSettings())
    if isinstance(checked, Unfit):
        return f"{checked.reason}: {checked.why}"
    return (content if checked.jpeg is None else checked.jpeg), checked.height * checked.width


def _groups(images: Sequence[_Read]) -> Iterator[Sequence[_Read]]:
    """`images` in runs of at most `_PIXELS` or one image, which are decoded together."""
    group: list[_Read] = []
    held = 0
    for one in images:
        pixels = 0 if isinstance(one, str) else one[1]
        if group and held + pixels > _PIXELS:
            yield group
            group, held = [], 0
        group.append(one)
        held += pixels
    yield group


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
