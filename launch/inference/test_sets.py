"""Test sets of their own in a run: opened before training, embedded and measured after each step.

Embeddings go through files, so that no process holds those of a million images.
"""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.files import write_atomically
from data_shards.pipeline import PipelineSettings
from data_shards.storage.remote import anywhere
from launch.inference.embed import parts
from launch.inference.worker import ShardWorker, Unit, without_worker
from launch.runs.test_sets import TestSet, naming_test
from trainer.evaluation.vectors import StoredVectors
from trainer.teacher import TeacherSettings

Ids = NDArray[np.int64]
Map = Callable[[Unit[Any], list[tuple[Any, ...]]], list[Any]]
"""Does a unit of work with each of several calls, somewhere; results in the order of the calls."""


Vectors = Callable[[TestSet, str, Ids, Path], None]
"""Writes the vectors [n, d], fp32, of samples [n] (ascending) of a test's part to a .npy file."""


@dataclass(frozen=True)
class Embedding:
    """`Vectors` that a model gives, some hundred images a unit of work."""

    model: Path
    """Its folder."""
    data: PipelineSettings
    """How images are read; `image_size` is what the model was trained on."""
    batch: int
    """Images of a forward pass."""
    map: Map

    def __call__(self, test: TestSet, part: str, samples: Ids, target: Path) -> None:
        dataset, folder = test.datasets[part], target.with_suffix("")
        pieces = parts(dataset, samples, self.batch)
        files = {folder / f"{n:05d}-{s:05d}.npy": own for n, (s, own) in enumerate(pieces)}
        where = self.model.resolve(), anywhere(dataset.location)
        how = test.mirrored, self.data, self.batch
        self.map(
            embed_test_set,
            [(*where, f.resolve(), own, *how) for f, own in files.items() if not f.exists()],
        )
        dimension = np.load(next(iter(files)), mmap_mode="r").shape[1]
        with new_matrix(target, (len(samples), dimension)) as whole:
            done = 0
            for file, own in files.items():
                whole[done : done + len(own)] = np.load(file, mmap_mode="r")
                done += len(own)
        shutil.rmtree(folder)


def embed_test_set(
    worker: ShardWorker,
    model_folder: Path,
    dataset: str,
    out: Path,
    samples: Ids,
    mirrored: bool,
    data: PipelineSettings,
    batch: int,
) -> None:
    """A unit of work: writes embeddings of another dataset's `samples` to `out`, .npy, fp32 [n, d].

    `mirrored` adds those of the mirror images.
    """
    _, embedder, _ = worker.model(model_folder, TeacherSettings())
    images = worker.other(dataset)
    vectors = worker.embed(embedder, samples, data, batch, dataset=images)
    if mirrored:
        vectors += worker.embed(embedder, samples, data, batch, dataset=images, flipped=True)
    worker.check()
    content = io.BytesIO()
    np.save(content, vectors)
    write_atomically(out, content.getvalue())


@contextmanager
def new_matrix(target: Path, shape: tuple[int, int]) -> Iterator[NDArray[np.float32]]:
    """A matrix to fill, which is then `target`, .npy, fp32, whole or not at all."""
    unfinished = target.with_suffix(".part")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    whole = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
    yield whole
    whole.flush()
    unfinished.rename(target)


@dataclass(frozen=True)
class Measurement:
    """Puts vectors to tests."""

    vectors: Vectors
    scratch: Path
    """Holds the vectors meanwhile; what an interrupted attempt left there is used."""
    map: Map

    def measure(self, tests: Mapping[str, TestSet]) -> dict[str, Any]:
        """The results of each test of a run by its name. Raises InputError naming the test."""
        measured = {}
        for name, test in tests.items():
            with naming_test(name):
                measured[name] = self.results(test, self.scratch / name)
        shutil.rmtree(self.scratch)
        return measured

    def results(self, test: TestSet, scratch: Path) -> dict[str, Any]:
        """The results of one test, its vectors in the folder `scratch`. Raises InputError."""
        stored = {}
        for part, samples in test.protocol.samples().items():
            file = (scratch / f"{part}.npy").absolute()
            if not file.exists():
                self.vectors(test, part, samples, file)
            stored[part] = StoredVectors(file, samples, test.protocol.normalised)
        return test.protocol.measure(stored, lambda calls: self.map(without_worker, list(calls)))
