"""CPU actors that run finished models: neighbourhoods for training, embeddings for evaluation.

A shard (in one view) is a unit of work; units are cut the same way whatever the number of actors.
"""

import io
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.files import write_atomically
from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.storage.dataset import SampleError, ShardDataset
from data_shards.storage.neighbours import VIEWS, teacher_file, write_teacher_file
from data_shards.storage.remote import CacheSettings
from launch.inference.embed import Ids, embed, fast_embedder
from launch.runs.lease import UNFENCED, Fence
from monitoring.exporter import serving
from monitoring.logs import LOG, logging_to
from monitoring.metrics import Metrics
from trainer.arrays import write_embeddings
from trainer.class_means import class_sums, write_sums
from trainer.heads.collectives import Ranks
from trainer.heads.rows import ShardedRows
from trainer.methods.wants import Answers
from trainer.model import Model
from trainer.teacher import TeacherSettings, answers
from untrusted.text import tsv_line


class ShardWorker:
    """An actor that keeps the dataset open and the last model loaded."""

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
        self._dataset = self._opened_at(dataset)
        self._loaded: tuple[Any, Model, Any, ShardedRows] | None = None
        self._test_sets: dict[str, ShardDataset] = {}
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

    def _model(self, folder: Path, settings: TeacherSettings) -> tuple[Model, Any, ShardedRows]:
        key = (folder, settings)
        if self._loaded is None or self._loaded[0] != key:
            model = Model.open(folder)
            rows = model.frozen_rows(Ranks())
            LOG.info("loaded %s, %s identities", folder, f"{model.rows:,}")
            self._loaded = (key, model, fast_embedder(model, settings), rows)
        return self._loaded[1:]

    def neighbours(
        self,
        model_folder: Path,
        out: Path,
        shard: int,
        view: str,
        samples: Ids,
        wanted: Answers,
        data: PipelineSettings,
        settings: TeacherSettings,
    ) -> int:
        """Writes what is `wanted` of one shard's `samples` in one view; returns their number."""
        model, embedder, rows = self._model(model_folder, settings)
        vectors = embed(embedder, self._dataset, samples, data, settings.batch, view == VIEWS[1])
        self._metrics.embedded.inc(len(samples))
        tensors = answers(torch.from_numpy(vectors), rows, model.classifier, wanted)
        self._fence.check()
        write_teacher_file(
            teacher_file(out, shard, view), {"samples": samples, **tensors}, model.fingerprint
        )
        return len(samples)

    def prototypes(
        self,
        model_folder: Path,
        out: Path,
        samples: Ids,
        rows: Ids,
        data: PipelineSettings,
        settings: TeacherSettings,
    ) -> None:
        """Writes the sums of the embeddings of `samples` [n] by their classifier `rows` [n]."""
        model, embedder, _ = self._model(model_folder, settings)
        self._metrics.embedded.inc(len(samples))
        vectors = embed(embedder, self._dataset, samples, data, settings.batch)
        self._fence.check()
        write_sums(out, class_sums(vectors, rows), model.fingerprint)

    def embed(
        self, model_folder: Path, samples: Ids, data: PipelineSettings, batch: int
    ) -> NDArray[np.float32]:
        """Embeddings of `samples` in fp32, for evaluation."""
        _, embedder, _ = self._model(model_folder, TeacherSettings())
        self._metrics.embedded.inc(len(samples))
        return embed(embedder, self._dataset, samples, data, batch)

    def embed_part(
        self,
        model_folder: Path,
        out: Path,
        samples: Ids,
        data: PipelineSettings,
        settings: TeacherSettings,
    ) -> int:
        """Writes the embeddings of `samples` to `out`, and beside it their keys and identities as
        lines of two columns; returns the length of a vector."""
        model, embedder, _ = self._model(model_folder, settings)
        self._metrics.embedded.inc(len(samples))
        vectors = embed(embedder, self._dataset, samples, data, settings.batch)
        names = self._dataset.names[self._dataset.identity[samples]]
        try:
            rows = zip(self._dataset.keys(samples), names, strict=True)
        except SampleError as error:
            raise InputError(f"{error}: restore the dataset, or build it anew") from error
        write_atomically(out.with_suffix(".tsv"), "".join(map(tsv_line, rows)).encode())
        write_embeddings(out, samples, vectors, model.fingerprint)
        return vectors.shape[1]

    def embed_test_set(
        self,
        model_folder: Path,
        dataset: str,
        out: Path,
        samples: Ids,
        mirrored: bool,
        data: PipelineSettings,
        batch: int,
    ) -> None:
        """Writes embeddings of another dataset's `samples` to `out`, .npy, fp32 [n, d].

        `mirrored` adds those of the mirror images.
        """
        _, embedder, _ = self._model(model_folder, TeacherSettings())
        if dataset not in self._test_sets:
            self._test_sets[dataset] = self._opened_at(dataset)
        images = self._test_sets[dataset]
        self._metrics.embedded.inc(len(samples) * (1 + mirrored))
        vectors = embed(embedder, images, samples, data, batch)
        if mirrored:
            vectors += embed(embedder, images, samples, data, batch, flipped=True)
        self._fence.check()
        content = io.BytesIO()
        np.save(content, vectors)
        write_atomically(out, content.getvalue())

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A unit of some evaluation's work."""
        return function(*arguments)
