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

from data_shards.benchmark import Benchmark
from data_shards.dataset import SampleError, ShardDataset
from data_shards.files import write_atomically
from data_shards.neighbours import VIEWS, TeacherCache, teacher_file, write_teacher_file
from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.remote import CacheSettings
from data_shards.settings import InputError
from launch.lease import UNFENCED, Fence
from monitoring.exporter import serving
from monitoring.logs import LOG, logging_to
from monitoring.metrics import Metrics
from trainer.arrays import write_embeddings
from trainer.backbones import Embedder
from trainer.class_means import class_sums, write_sums
from trainer.evaluation.protocol import picture
from trainer.heads.collectives import Ranks
from trainer.heads.rows import ShardedRows
from trainer.methods.recipe import Needs
from trainer.model import Model
from trainer.processor import fallback, multiplies_bf16
from trainer.teacher import TeacherSettings, answers
from untrusted.text import tsv_line

Ids = NDArray[np.int64]


def fast_embedder(model: Model, settings: TeacherSettings) -> Any:
    """The model's embedder prepared for many forward passes on CPU, as `settings` ask.

    Raises InputError when an adopted one cannot be.
    """
    embedder: Any = model.embedder()
    if model.adopted:
        if settings.precision != "fp32" or settings.compile:
            raise InputError(
                f"{model.folder} is an adopted model, which runs as it is: set "
                "teacher.precision=fp32 and teacher.compile=false"
            )
        return embedder
    embedder = embedder.to(memory_format=torch.channels_last)
    if settings.precision == "bf16":
        if multiplies_bf16():
            embedder = embedder.to(torch.bfloat16)
        else:
            LOG.warning("%s", fallback("teacher.precision"))
    if not settings.compile:
        return embedder
    # freezing folds batch normalisation and packs the weights for the CPU's matrix instructions
    return torch.compile(embedder, dynamic=False, options={"freezing": True})


@torch.inference_mode()
def embed(
    embedder: Embedder,
    dataset: ShardDataset,
    samples: Ids,
    data: PipelineSettings,
    batch: int,
    flipped: bool = False,
) -> NDArray[np.float32]:
    """Embeddings [n, d] of `samples` ([n]) as they are, or mirrored, without augmentation.

    Every forward pass has `batch` images, the last one padded by repetition, so that compiled
    code meets one shape and an image's embedding does not depend on its neighbours' number.
    """
    parts = [samples[i : i + batch] for i in range(0, len(samples), batch)]
    padded = [np.concatenate([p, np.repeat(p[-1:], batch - len(p))]) for p in parts]
    requests = (Request.plain(dataset, part, flipped) for part in padded)
    stream = ImageStream(dataset, requests, batch, data, augmented=False)
    vectors = [embedder(images).float().numpy() for _, images in stream]
    return np.concatenate(vectors)[: len(samples)]


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
        needs: Needs,
        data: PipelineSettings,
        settings: TeacherSettings,
    ) -> int:
        """Writes what the model says of one shard's `samples` in one view; returns their number."""
        model, embedder, rows = self._model(model_folder, settings)
        vectors = embed(embedder, self._dataset, samples, data, settings.batch, view == VIEWS[1])
        self._metrics.embedded.inc(len(samples))
        tensors = answers(torch.from_numpy(vectors), rows, model.classifier, needs)
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


def neighbour_examples(
    dataset: ShardDataset, benchmark: Benchmark, cache: TeacherCache, samples: Ids, count: int
) -> list[dict[str, Any]]:
    """Some new images, evenly spaced, with an image of each of their first old identities.

    For people to look at in the report; training sees no old image.
    """
    chosen = np.sort(samples)[np.linspace(0, len(samples) - 1, count).astype(np.int64)]
    classes = cache.look_up(chosen, np.zeros(count, dtype=bool))["classes"][:, :8]
    rows = benchmark.row_of_identity[dataset.identity]
    return [
        {
            "query": picture(dataset, int(sample)),
            "found": [picture(dataset, int(np.argmax(rows == row))) for row in nearest],
        }
        for sample, nearest in zip(chosen, classes, strict=True)
    ]


def units(dataset: ShardDataset, samples: Ids) -> list[tuple[int, Ids]]:
    """`samples` by the shard they lie in, both ascending."""
    samples = np.sort(samples)
    shards = dataset.shard[samples]
    return [(int(shard), samples[shards == shard]) for shard in np.unique(shards)]
