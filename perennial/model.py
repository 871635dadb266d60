"""A finished model, as `perennial.load` gives it."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_shards.images import pixels_of
from data_shards.settings import InputError
from data_shards.storage.kinds import kind_of
from launch.inference.embed import embed, units
from launch.inference.pictures import Picture, PictureEmbedder, images_at
from launch.models.classify import Classified, Classifier
from launch.models.embed import Images
from launch.models.search import Match, Stored
from launch.runs.model_names import model_folder
from trainer.model import Model as Saved

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]
One = str | Path | Image.Image | Pixels
Given = One | Iterable[One]
"""Images: a file, a folder of files, a dataset's folder or URL, a Pillow image, pixels [h, w, 3] or
[n, h, w, 3] (uint8, RGB); or several of these that are one image each."""
_ONE = (str, Path, Image.Image, np.ndarray)
_TOLD = 3


class Model:
    """A finished model: embeds, classifies and searches, in this process, on its CPU.

    >>> model = perennial.load("runs/demo:fkd")
    >>> model.dimension, model.fingerprint
    (128, '5d1c0f…')
    """

    def __init__(self, name: str | Path) -> None:
        """Verifies the model that `name` names, see `perennial.load`. Raises InputError."""
        self._saved = Saved.open(model_folder(name))

    def __repr__(self) -> str:
        return f"<perennial model {self.fingerprint} of {self.folder}, dimension {self.dimension}>"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._saved.folder

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever any of its files does; stored vectors name it."""
        return self._saved.fingerprint

    @property
    def dimension(self) -> int:
        """d, the length of a vector."""
        return self._saved.settings.dimension

    @cached_property
    def classes(self) -> list[str]:
        """The identities that it has learned, by name; none of an adopted one without rows."""
        return self._saved.names()

    def embed(self, images: Given) -> Vectors:
        """The vectors [n, d] of n images, float32, not normalised: what `perennial embed` writes.

        Files are read as an import would store them: anything but an upright JPEG becomes one of
        quality 95. Pixels and Pillow images are taken as they are. All are scaled to the size that
        the model was trained on. A folder's files are embedded in the order of
        `perennial.images`, a dataset's images in its own.

        >>> model.embed("photos/anna/1.jpg").shape
        (1, 128)

        Raises InputError naming images that cannot be read.
        """
        if isinstance(images, str | Path) and _is_dataset(images):
            return self._embed_dataset(str(images))
        vectors, refused = [np.empty((0, self.dimension), np.float32)], []
        done = 0
        for batch, embedded in self._embedder(given := _pictures(images)):
            refused += [_named(batch[n], done + n, why) for n, why in embedded.refused.items()]
            vectors.append(embedded.vectors.numpy().reshape(-1, self.dimension))
            done += len(batch)
        _check(refused, len(given))
        return np.concatenate(vectors)

    def classify(self, images: Given) -> list[Classified]:
        """Of each image the five likeliest classes with their scores, as `perennial classify`.

        >>> for found in model.classify("photos/unknown"):
        ...     name, probability = found.classes[0]

        Scores are probabilities, or where nearest means decide, cosine similarities
        (`found.score`). Raises InputError naming images that cannot be read, and for a model that
        knows no class.
        """
        given = _pictures(images)
        found = [one for batch in self._classifier(given) for one in batch]
        refused = [_named(given[n], n, one.refused) for n, one in enumerate(found) if one.refused]
        _check(refused, len(given))
        return found

    def search(
        self,
        gallery: str | Path | Vectors,
        images: Given,
        top: int = 5,
        names: Sequence[str] | None = None,
        other_model: bool = False,
    ) -> list[list[Match]]:
        """Of each image the `top` nearest vectors of a gallery by cosine similarity, nearest first.

        `gallery` is what `perennial embed` wrote (a folder, .npy or .safetensors), or vectors
        [g, d] with the identity of each in `names`.

        >>> [[best, *_]] = model.search("vectors", "photos/unknown/1.jpg")
        >>> best.identity, best.similarity

        Vectors of another model are refused unless `other_model` says that the two are compatible
        (`perennial compat`). Raises InputError.
        """
        if isinstance(gallery, str | Path):
            stored = Stored.open(Path(gallery))
            others = [model for model in stored.models if model != self.fingerprint]
            if others and not other_model:
                raise InputError(
                    f"{gallery} has vectors by model {others[0]}, this is {self.fingerprint}: "
                    "embed it anew or backfill it, or give other_model=True if `perennial compat` "
                    "says that they are compatible"
                )
        else:
            stored = Stored.of(np.asarray(gallery, dtype=np.float32), names or ())
        return stored.nearest(self.embed(images), top)

    @cached_property
    def _embedder(self) -> PictureEmbedder:
        return PictureEmbedder(self._saved)

    @cached_property
    def _classifier(self) -> Classifier:
        return Classifier(self._saved, self._embedder)

    def _embed_dataset(self, location: str) -> Vectors:
        """Shard by shard, as `perennial embed` does."""
        opened = Images.open(location, None, self._saved)
        dataset, how = opened.dataset, self._embedder
        parts = units(dataset, np.arange(len(dataset), dtype=np.int64))
        return np.concatenate(
            [embed(how.network, dataset, own, opened.data, how.settings.batch) for _, own in parts]
        )


def _is_dataset(given: str | Path) -> bool:
    return "://" in str(given) or kind_of(Path(given)) == "dataset"


def _pictures(given: Given) -> list[Picture]:
    """The images that are `given`, in order. Raises InputError."""
    if isinstance(given, str | Path):
        return list(images_at([Path(given)]))
    if isinstance(given, Image.Image):
        return [pixels_of(given)]
    if isinstance(given, np.ndarray):
        if given.ndim not in (3, 4) or given.dtype != np.uint8 or given.shape[-1] != 3:
            raise InputError(
                f"an array of {given.dtype}, shape {given.shape}: give uint8 pixels, RGB, of shape "
                "[h, w, 3] or [n, h, w, 3]"
            )
        return list(given if given.ndim == 4 else given[None])
    return [_picture(one, place) for place, one in enumerate(given)]


def _picture(given: One, place: int) -> Picture:
    """One image of several. Raises InputError where it is several itself."""
    if isinstance(given, str | Path) and Path(given).is_dir():
        raise InputError(f"{given} is a folder among images: give it alone, or perennial.images()")
    found = _pictures(given) if isinstance(given, _ONE) else []
    if len(found) != 1:
        raise InputError(f"image {place} is a {type(given).__name__}, which is not one image")
    return found[0]


def _named(picture: Picture, place: int, why: str) -> str:
    return f"{picture if isinstance(picture, Path) else f'image {place}'} ({why})"


def _check(refused: list[str], count: int) -> None:
    if refused:
        more = f" and {len(refused) - _TOLD} more" if len(refused) > _TOLD else ""
        raise InputError(
            f"{len(refused)} of {count} images cannot be read: {', '.join(refused[:_TOLD])}{more}: "
            "leave them out"
        )
