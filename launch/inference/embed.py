"""Embeds images with finished models on CPU, a shard at a time."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.settings import InputError
from data_shards.splits.benchmark import Benchmark
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.neighbours import TeacherCache
from monitoring.logs import LOG
from trainer.backbones import Embedder
from trainer.evaluation.protocol import picture
from trainer.model import Model
from trainer.processor import fallback, multiplies_bf16
from trainer.teacher import TeacherSettings

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


def units(dataset: ShardDataset, samples: Ids) -> list[tuple[int, Ids]]:
    """`samples` by the shard they lie in, both ascending."""
    samples = np.sort(samples)
    shards = dataset.shard[samples]
    return [(int(shard), samples[shards == shard]) for shard in np.unique(shards)]


_PART = 512
"""Images of a unit of work, about: several seconds of a core."""


def parts(dataset: ShardDataset, samples: Ids, batch: int) -> list[tuple[int, Ids]]:
    """`units` in parts, so that all actors have work, and what they do is seen."""
    return [(shard, part) for shard, own in units(dataset, samples) for part in cut(own, batch)]


def cut(samples: Ids, batch: int) -> list[Ids]:
    """The samples of a unit in parts.

    They are cut between batches of `batch`: each image is embedded in the batch that it would be in
    if its shard were one unit, and to the same bits.
    """
    length = batch * -(-_PART // batch)
    return [samples[first : first + length] for first in range(0, len(samples), length)]


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
