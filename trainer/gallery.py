"""A gallery: the vectors of a dataset's images by one model, or by two during an upgrade.

``gallery.json`` is the index of the files that count, each with rows of one shard by one model.
Other files in the folder are ignored, so that replacing the index changes the gallery atomically.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch.nn.functional import normalize

from data_shards.counter_rng import bits, stream_key
from data_shards.files import fingerprint, sha256, write_json
from data_shards.settings import InputError
from trainer.arrays import read_embeddings, write_embeddings
from untrusted.files import read_bytes
from untrusted.json_text import parse_json
from untrusted.names import plain_name, sha256_text

Ids = NDArray[np.int64]
Vectors = NDArray[np.float32]
Order = Literal["isolated", "random"]
INDEX = "gallery.json"
_VERSION = 1
_INDEX_BYTES = 1 << 28
_BLOCK = 4096  # identities whose means are compared with as many others at once


@dataclass(frozen=True)
class Part:
    """The vectors of some images of one shard by one model: a file of `trainer.arrays`."""

    name: Annotated[str, AfterValidator(plain_name)]
    shard: Annotated[int, Field(ge=0)]
    model: Annotated[str, AfterValidator(plain_name)]
    """The model's fingerprint, which is also part of new files' names."""
    rows: Annotated[int, Field(ge=0, lt=2**40)]
    sha256: Annotated[str, AfterValidator(sha256_text)]


class _Index(BaseModel):
    """The schema of gallery.json."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Literal[1]
    dataset: str
    dimensions: dict[str, Annotated[int, Field(ge=1, le=1 << 20)]]
    parts: tuple[Part, ...]
    generation: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _names_what_it_has(self) -> "_Index":
        if not {part.model for part in self.parts} <= self.dimensions.keys():
            raise ValueError("a part is of a model that it does not name")
        if len({part.name for part in self.parts}) < len(self.parts):
            raise ValueError("a part is there twice")
        return self


class Held(Protocol):
    """Vectors that are stored of a dataset's images, by one model or by two."""

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever a vector does; or that never does, where replacing vectors
        twice is harmless."""

    def rows(self, model: str) -> int:
        """The number of vectors by `model`."""

    def others(self, model: str) -> list[str]:
        """The models of vectors that are stored there, without `model`."""

    def vectors(self, model: str, count: int | None = None) -> Iterator[tuple[Ids, Vectors]]:
        """Samples [n], ascending, and their vectors [n, d] by `model`, in several parts.

        With `count`, the number of samples, rows are checked. Raises InputError.
        """


@dataclass(frozen=True)
class Gallery:
    """A gallery on disk."""

    folder: Path
    dataset: str
    """The dataset's fingerprint; rows are its samples."""
    dimensions: dict[str, int]
    """d of each model, by its fingerprint; the model of the first vectors first."""
    parts: tuple[Part, ...]
    generation: int = 0
    """Number of partial upgrades so far; part of new files' names, so that none is overwritten."""

    @classmethod
    def open(cls, folder: Path) -> "Gallery":
        """Reads the index. Raises InputError when there is none, or it is damaged."""
        try:
            content = read_bytes(folder / INDEX, _INDEX_BYTES, folder)
            parse_json(content)  # no key twice
            index = _Index.model_validate_json(content)
            return cls(folder, index.dataset, index.dimensions, index.parts, index.generation)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{folder} holds no gallery (no {INDEX}): make one with `perennial embed MODEL "
                f"SHARDS --out {folder}`"
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(f"{folder / INDEX} is damaged: embed the dataset anew") from error

    @property
    def values(self) -> dict[str, object]:
        """The content of the index."""
        kept = {key: value for key, value in asdict(self).items() if key != "folder"}
        return {"version": _VERSION, **kept}

    @property
    def fingerprint(self) -> str:
        """A hash that changes whenever a vector does."""
        return fingerprint(self.values)

    def rows(self, model: str) -> int:
        """The number of vectors by `model`."""
        return sum(part.rows for part in self.parts if part.model == model)

    def others(self, model: str) -> list[str]:
        """The models of its vectors, without `model`."""
        return [name for name in self.dimensions if name != model]

    def read(self, part: Part) -> tuple[Ids, Vectors]:
        """Samples [n], ascending, and their vectors [n, d]. Raises InputError when damaged."""
        path = self.folder / part.name
        if not path.is_file() or sha256(path) != part.sha256:
            raise InputError(f"{path} is missing or was changed: embed the dataset anew")
        samples, vectors = read_embeddings(path, part.model)
        if vectors.shape != (part.rows, self.dimensions[part.model]):
            raise InputError(f"{path} holds other vectors than {INDEX} says: embed anew")
        return samples, vectors

    def vectors(self, model: str, count: int | None = None) -> Iterator[tuple[Ids, Vectors]]:
        """Reads each part by `model`; with `count`, the number of samples, rows are checked.

        Raises InputError when a part is damaged.
        """
        for part in self.parts:
            if part.model == model:
                samples, vectors = self.read(part)
                if count is not None and len(samples) and samples[-1] >= count:
                    raise InputError(
                        f"{self.folder / part.name} has vectors of samples that are not there: "
                        "embed the dataset anew"
                    )
                yield samples, vectors

    def models(self, count: int) -> list[str]:
        """[count] the fingerprint of the model of each sample's vector."""
        named = list(self.dimensions)
        column = np.zeros(count, dtype=np.int64)
        for part in self.parts:
            column[self.read(part)[0]] = named.index(part.model)
        return [named[number] for number in column.tolist()]

    def save(self) -> None:
        """Writes the index, which makes this the folder's gallery, atomically."""
        write_json(self.folder / INDEX, self.values)

    def sweep(self) -> None:
        """Deletes files that the index does not name: replaced ones, or of interrupted upgrades."""
        kept = {part.name for part in self.parts}
        for pattern in ("shard-*.safetensors", ".shard-*.part"):
            for path in self.folder.glob(pattern):
                if path.name not in kept:
                    path.unlink()


def part_file(folder: Path, shard: int, model: str, generation: int) -> Path:
    """The path of a shard's vectors by a model, in a gallery or in a work folder."""
    return folder / f"shard-{shard:05d}-{model}-{generation}.safetensors"


def stored(
    folder: Path, shard: int, model: str, generation: int, samples: Ids, vectors: Vectors
) -> Part:
    """Writes a part's file, and returns the part."""
    path = part_file(folder, shard, model, generation)
    write_embeddings(path, samples, vectors, model)
    return Part(path.name, shard, model, len(samples), sha256(path))


def upgraded(
    gallery: Gallery, model: str, dimension: int, fresh: Iterable[tuple[int, Ids, Vectors]]
) -> Gallery:
    """The gallery with some vectors replaced. Writes its files, but not its index.

    `fresh` yields (shard, samples, vectors by `model`), samples ascending, each shard at most once.
    """
    parts, after = {part.name: part for part in gallery.parts}, gallery.generation + 1
    for shard, samples, vectors in fresh:
        new = samples, vectors
        for part in [part for part in gallery.parts if part.shard == shard]:
            held = gallery.read(part)
            if part.model == model:
                new = _merged(held, new)
                del parts[part.name]
                continue
            stays = ~np.isin(held[0], samples)
            if stays.all():
                continue
            del parts[part.name]
            if stays.any():
                rest = held[0][stays], held[1][stays]
                kept = stored(gallery.folder, shard, part.model, after, *rest)
                parts[kept.name] = kept
        made = stored(gallery.folder, shard, model, after, *new)
        parts[made.name] = made
    ordered = tuple(sorted(parts.values(), key=lambda part: (part.shard, part.name)))
    models = {part.model for part in ordered}
    dimensions = gallery.dimensions | {model: dimension}
    dimensions = {name: d for name, d in dimensions.items() if name in models}
    return replace(gallery, parts=ordered, dimensions=dimensions, generation=after)


def _merged(a: tuple[Ids, Vectors], b: tuple[Ids, Vectors]) -> tuple[Ids, Vectors]:
    samples, vectors = np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])
    order = np.argsort(samples)
    return samples[order], vectors[order]


def crowding(parts: Iterable[tuple[Ids, Vectors]], identity: Ids) -> NDArray[np.float32]:
    """[identities] the largest cosine between an identity's mean direction and any other's.

    `parts` are samples and their vectors, `identity` [n] is each sample's. It is -inf for
    identities without vectors. Memory: d numbers an identity, as means are compared, not images.
    """
    count = int(identity.max()) + 1
    sums: torch.Tensor | None = None
    for samples, vectors in parts:
        if sums is None:
            sums = torch.zeros(count, vectors.shape[1])
        index = torch.from_numpy(identity[samples])
        sums.index_add_(0, index, normalize(torch.from_numpy(vectors)))
    nearest = torch.full((count,), -torch.inf)
    if sums is None:
        return nearest.numpy()
    present = torch.unique(torch.nonzero(sums.abs().sum(1))[:, 0])
    directions = normalize(sums[present])
    for start in range(0, len(present), _BLOCK):
        own = torch.arange(start, min(start + _BLOCK, len(present)))
        best = torch.full((len(own),), -torch.inf)
        for first in range(0, len(present), _BLOCK):
            cosines = directions[own] @ directions[first : first + _BLOCK].T
            if first == start:
                cosines.fill_diagonal_(-torch.inf)
            best = torch.maximum(best, cosines.amax(1))
        nearest[present[own]] = best
    return nearest.numpy()


def chosen(gallery: Held, model: str, identity: Ids, budget: int, order: Order) -> Ids:
    """The samples, ascending, at most `budget`, whose vectors are to be replaced by `model` next.

    Identity by identity: first those that are begun, then those farthest from all others by the
    vectors of the other model (`crowding`), or in a fixed random order. `identity` [n] is each
    sample's.
    """
    count, every = int(identity.max()) + 1, len(identity)
    old = gallery.others(model)
    waiting = np.concatenate(
        [np.empty(0, np.int64), *(s for m in old for s, _ in gallery.vectors(m, every))]
    )
    begun = np.zeros(count, dtype=bool)
    for samples, _ in gallery.vectors(model, every):
        begun[identity[samples]] = True
    if order == "isolated":
        key = crowding((part for name in old for part in gallery.vectors(name, every)), identity)
    else:
        key = bits(stream_key(0, "backfill"), np.arange(count)).astype(np.float64)
    place = np.empty(count, dtype=np.int64)
    place[np.lexsort((np.arange(count), key, ~begun))] = np.arange(count)
    waiting = waiting[np.lexsort((waiting, place[identity[waiting]]))]
    return np.sort(waiting[:budget])
