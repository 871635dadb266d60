"""Test sets of their own in a run: opened before training, embedded and measured after each step.

Embeddings go through files, so that no process holds those of a million images.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.dataset import ShardDataset
from data_shards.files import fingerprint
from data_shards.pipeline import PipelineSettings
from data_shards.remote import CacheSettings, Count, anywhere, ignore
from data_shards.settings import InputError
from launch.neighbourhoods import units
from trainer.evaluation import EvaluationSettings
from trainer.evaluation.held_out import open_held_out
from trainer.evaluation.held_out.common import HeldOut
from trainer.evaluation.vectors import StoredVectors

Map = Callable[[str, list[tuple[Any, ...]]], list[Any]]
"""Calls an actor's method with each of several arguments, and returns the results in order."""


@dataclass(frozen=True)
class HeldOutTest:
    """A test set of its own."""

    datasets: dict[str, ShardDataset]
    """ "dataset" and, where there are any apart, "distractors"."""
    protocol: HeldOut
    mirrored: bool

    @property
    def fingerprint(self) -> str:
        """Changes whenever a dataset does."""
        return fingerprint({part: held.fingerprint for part, held in self.datasets.items()})


def open_tests(
    settings: EvaluationSettings, cache: CacheSettings | None = None, count: Count = ignore
) -> dict[str, HeldOutTest]:
    """Opens every test set; `cache` will hold the shards of remote ones.

    Raises InputError naming the test for what is missing.
    """
    tests = {}
    for name, test in settings.tests.items():
        folders = {"dataset": test.dataset, "distractors": test.distractors}
        datasets = {}
        for part, folder in folders.items():
            try:
                if folder is not None:
                    datasets[part] = ShardDataset.open(folder, cache, count)
            except InputError as error:
                raise InputError(f"evaluation.tests.{name}.{part}: {error}") from error
        protocol = open_held_out(name, settings, datasets["dataset"], datasets.get("distractors"))
        tests[name] = HeldOutTest(datasets, protocol, test.mirrored)
    return tests


@dataclass(frozen=True)
class Measurement:
    """Puts one model to the tests."""

    model: Path
    """Its folder."""
    data: PipelineSettings
    """How images are read; `image_size` is what the model was trained on."""
    batch: int
    """Images of a forward pass."""
    scratch: Path
    """Holds the embeddings meanwhile; what an interrupted attempt left there is used."""
    map: Map

    def measure(self, tests: Mapping[str, HeldOutTest]) -> dict[str, Any]:
        """The results of each test by its name."""

        def spread(calls: Sequence[tuple[Any, ...]]) -> list[Any]:
            return self.map("call", list(calls))

        measured = {}
        for name, test in tests.items():
            vectors = {
                part: StoredVectors(
                    self._embedded(test, part, samples, self.scratch / name / part),
                    samples,
                    test.protocol.normalised,
                )
                for part, samples in test.protocol.samples().items()
            }
            try:
                measured[name] = test.protocol.measure(vectors, spread)
            except InputError as error:
                raise InputError(f"evaluation.tests.{name}: {error}") from error
        shutil.rmtree(self.scratch)
        return measured

    def _embedded(
        self, test: HeldOutTest, part: str, samples: NDArray[np.int64], folder: Path
    ) -> Path:
        """A file of the embeddings [n, d] of `samples` (ascending), a shard a unit of work."""
        joined, dataset = folder.with_suffix(".npy").absolute(), test.datasets[part]
        if joined.exists():
            return joined
        files = {folder / f"{shard:05d}.npy": own for shard, own in units(dataset, samples)}
        where = self.model.resolve(), anywhere(dataset.location)
        how = test.mirrored, self.data, self.batch
        self.map(
            "embed_held_out",
            [(*where, f.resolve(), own, *how) for f, own in files.items() if not f.exists()],
        )
        dimension = np.load(next(iter(files)), mmap_mode="r").shape[1]
        unfinished = folder.with_suffix(".part")
        whole = np.lib.format.open_memmap(unfinished, "w+", np.float32, (len(samples), dimension))
        done = 0
        for file, own in files.items():
            whole[done : done + len(own)] = np.load(file, mmap_mode="r")
            done += len(own)
        whole.flush()
        unfinished.rename(joined)
        shutil.rmtree(folder)
        return joined
