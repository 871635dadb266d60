"""What a sink is given, and what it must do."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.files import fsync
from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from trainer.arrays import read_embeddings
from trainer.gallery import Held
from untrusted.text import tsv_cells

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Vectors of some images, and what is known of these."""

    samples: Ids
    """[n] their numbers in the dataset, ascending."""
    vectors: NDArray[np.float32]
    """[n, d] not normalised."""
    keys: list[str]
    identities: list[str]
    cameras: list[str]


@dataclass(frozen=True)
class Made:
    """Vectors that a model has just made, in a file for each shard, beside it its keys."""

    folder: Path
    files: dict[int, Path]
    """By shard, ascending: `trainer.arrays` of `embed_part`."""
    plan: dict[str, Any]
    """What they depend on, see `Images.plan`."""
    dataset: ShardDataset

    @property
    def model(self) -> str:
        """The model's fingerprint."""
        return str(self.plan["model"])

    @property
    def dimension(self) -> int:
        """d, length of a vector."""
        return read_embeddings(next(iter(self.files.values())), self.model)[1].shape[1]

    def parts(self) -> Iterator[tuple[Path, Rows]]:
        """Each file with its rows."""
        names, cameras = self.dataset.names, self.dataset.manifest["cameras"]
        for file in self.files.values():
            samples, vectors = read_embeddings(file, self.model)
            with file.with_suffix(".tsv").open(newline="\n", encoding="utf-8") as lines:
                keys = [tsv_cells(line)[0] for line in lines]
            identities = names[self.dataset.identity[samples]].tolist()
            seen_by = [cameras[camera] for camera in self.dataset.camera[samples].tolist()]
            yield file, Rows(samples, vectors, keys, identities, seen_by)


@dataclass(frozen=True)
class OnDisk:
    """What sinks have in common that are a file or a folder."""

    out: Path

    @property
    def place(self) -> str:
        """It for people."""
        return str(self.out)

    @property
    def work(self) -> Path:
        """The folder of an unfinished call, beside it."""
        return self.out.with_name(f".{self.out.name}.embedding")


class Sink(Protocol):
    """Where vectors of all images of a dataset go."""

    @property
    def place(self) -> str:
        """It for people, without passwords."""

    @property
    def work(self) -> Path:
        """The folder of an unfinished call."""

    def holds(self, plan: dict[str, Any]) -> bool:
        """Whether just these vectors are there, whole.

        Raises InputError where others are, naming the remedy.
        """

    def publish(self, made: Made) -> None:
        """Puts the vectors there. Called again after a kill, it ends alike."""


class Store(Sink, Protocol):
    """A sink whose vectors can be replaced by another model's."""

    @property
    def upgrade(self) -> Path:
        """The folder of an unfinished upgrade."""

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other upgrades by this machine away. Raises InputError where there is nothing."""

    def held(self, dataset: str, dimension: int) -> AbstractContextManager[Held]:
        """The vectors of the dataset with this fingerprint, to be replaced by such of `dimension`
        numbers.

        Raises InputError where there are none of it, and where that length does not fit.
        """

    def replace(self, made: Made) -> None:
        """Replaces the vectors of these images, those that are still there.

        Called again after a kill, it ends alike.
        """


def other_vectors(place: str, models: Iterable[str]) -> InputError:
    """The refusal to mix vectors of several models."""
    return InputError(
        f"{place} holds vectors of model {' and '.join(models)}: upgrade them first by `perennial "
        "backfill`, or give another --out"
    )


def join_ids(files: Iterable[Path], target: Path) -> None:
    """Writes ``ids.tsv``: the lines of keys and identities beside `files`, under their names."""
    with target.open("wb") as joined:
        joined.write(b"key\tidentity\n")
        for file in files:
            with file.with_suffix(".tsv").open("rb") as lines:
                shutil.copyfileobj(lines, joined)
    fsync(target)
