"""The process that runs finished models on CPU: it keeps datasets open and a model loaded.

What it does with them is a unit of work: a function that is given the worker and plain values. A
shard (in one view) is a unit; units are cut the same way whatever the number of workers.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.pipeline import PipelineSettings
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.joined import joined
from data_shards.storage.remote import CacheSettings
from launch.inference.embed import Ids, embed, fast_embedder
from launch.runs.lease import UNFENCED, Fence
from monitoring.exporter import serving
from monitoring.logs import LOG, logging_to
from monitoring.metrics import Metrics
from trainer.heads.collectives import Ranks
from trainer.heads.rows import ShardedRows
from trainer.model import Model
from trainer.teacher import TeacherSettings

T = TypeVar("T")
Unit = Callable[..., T]
"""A unit of work: called with a `ShardWorker` and the plain values of one call."""


class ShardWorker:
    """Keeps the dataset open and the last model loaded, for unit after unit."""

    def __init__(
        self,
        dataset: str,
        cache: CacheSettings,
        threads: int,
        target_file: Path,
        name: str,
        fence: Fence = UNFENCED,
        host: str = "127.0.0.1",
    ) -> None:
        torch.set_num_threads(threads)
        self._fence = fence
        self._metrics = Metrics()
        self._cache = cache
        self.dataset = self._opened_at(dataset)
        """That of the run, or whose images are embedded."""
        self._loaded: tuple[Any, Model, Any, ShardedRows] | None = None
        self._others: dict[str, ShardDataset] = {}
        self._joined: tuple[Path, ShardDataset] | None = None
        labels = {"job": "actor", "actor": name}
        folder = target_file.parents[1]
        self._opened = ExitStack()  # until it is closed, or Ray ends the actor
        self._opened.enter_context(serving(self._metrics.registry, target_file, labels, host=host))
        self._opened.enter_context(
            logging_to(folder, f"actor-{name}", {"run": folder.name, **labels})
        )

    def _opened_at(self, location: str) -> ShardDataset:
        return ShardDataset.open(location, self._cache, self._metrics.count_cache)

    def close(self) -> None:
        """Ends what it serves and logs, where it has no process of its own."""
        self._opened.close()

    def run(self, unit: Unit[T], *call: Any) -> T:
        """Does a unit of work."""
        return unit(self, *call)

    def check(self) -> None:
        """Raises when this process may not write any more: another attempt has the run."""
        self._fence.check()

    def other(self, location: str) -> ShardDataset:
        """Another dataset, by a location that every machine knows; it stays open."""
        if location not in self._others:
            self._others[location] = self._opened_at(location)
        return self._others[location]

    def with_exemplars(self, memory: Path | None) -> ShardDataset:
        """The worker's own dataset, with the exemplars in a folder behind it."""
        if memory is None:
            return self.dataset
        if self._joined is None or self._joined[0] != memory:
            self._joined = (memory, joined(self.dataset, self._opened_at(str(memory))))
        return self._joined[1]

    def model(self, folder: Path, settings: TeacherSettings) -> tuple[Model, Any, ShardedRows]:
        """A finished model, its embedder prepared as `settings` say, and its frozen rows.

        The last one asked for stays loaded. Raises InputError when it is damaged.
        """
        key = (folder, settings)
        if self._loaded is None or self._loaded[0] != key:
            model = Model.open(folder)
            rows = model.frozen_rows(Ranks())
            LOG.info("loaded %s, %s identities", folder, f"{model.rows:,}")
            self._loaded = (key, model, fast_embedder(model, settings), rows)
        return self._loaded[1:]

    def embed(
        self,
        embedder: Any,
        samples: Ids,
        data: PipelineSettings,
        batch: int,
        *,
        dataset: ShardDataset | None = None,
        flipped: bool = False,
    ) -> NDArray[np.float32]:
        """Embeddings [n, d] of `samples` [n] of a dataset (the worker's own); see `embed`."""
        self._metrics.embedded.inc(len(samples))
        return embed(embedder, dataset or self.dataset, samples, data, batch, flipped)


def images_of(call: tuple[Any, ...]) -> int:
    """How many images a unit's call is about: its samples are the one array of whole numbers."""
    return sum(len(a) for a in call if isinstance(a, np.ndarray) and a.dtype == np.int64)


def done_of(calls: Sequence[tuple[Any, ...]], done: Iterable[int]) -> tuple[int, int]:
    """How many images the calls with the numbers `done` are about, and how many all are."""
    each = [images_of(call) for call in calls]
    return sum(each[number] for number in done), sum(each)


def without_worker(_: ShardWorker, function: Callable[..., T], *arguments: Any) -> T:
    """A unit of work that needs no worker: `function` of `arguments`."""
    return function(*arguments)


def embed_samples(
    worker: ShardWorker,
    model: Path,
    samples: Ids,
    data: PipelineSettings,
    batch: int,
    dataset: Path | None = None,
    flipped: bool = False,
) -> NDArray[np.float32]:
    """A unit of work: embeddings [n, d] of `samples` [n] in fp32, by the model in a folder.

    The samples are of the worker's own dataset, or of the one in the folder `dataset`.
    """
    _, embedder, _ = worker.model(model, TeacherSettings())
    other = None if dataset is None else worker.other(str(dataset))
    return worker.embed(embedder, samples, data, batch, dataset=other, flipped=flipped)
