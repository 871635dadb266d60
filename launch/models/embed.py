"""Embeds all images of a dataset with a model, shard by shard, resuming after an interruption."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from data_shards.files import write_atomically
from data_shards.pipeline import PipelineSettings, image_size, resized
from data_shards.settings import InputError
from data_shards.storage.dataset import SampleError, ShardDataset
from data_shards.storage.remote import CacheSettings, anywhere
from launch.config.cluster import ClusterSettings
from launch.execution.actor_pool import ActorPool
from launch.execution.ray_cluster import cluster
from launch.exits import sigterm
from launch.inference.embed import units
from launch.inference.worker import ShardWorker, images_of
from launch.models.sinks.interface import Made
from launch.models.sinks.registry import sink_at
from launch.models.work_folder import check_same_plan, locked
from launch.terminal.progress import progress
from monitoring.run_folder import TARGETS_FOLDER
from trainer.adopted import AdoptedSettings
from trainer.arrays import write_embeddings
from trainer.gallery import part_file
from trainer.model import Model
from trainer.teacher import TeacherSettings
from untrusted.text import tsv_line

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Images:
    """The images to embed, and how they are read."""

    dataset: ShardDataset
    location: str
    """The dataset's path or URL for every process."""
    data: PipelineSettings

    @classmethod
    def open(cls, location: str, size: tuple[int, int] | None, model: Model) -> "Images":
        """Opens a dataset; images are resized to `size`, or to the size `model` was trained on.

        For an adopted `model`, images of different sizes are resized to the size that it expects.
        Raises InputError.
        """
        dataset = ShardDataset.open(location)
        varied = dataset.manifest["image_size"] is None
        if size is None and varied and isinstance(model.settings, AdoptedSettings):
            size = model.settings.pixels.size
        data = resized(
            PipelineSettings(image_size=size, centre=model.centre), dataset, model.image_size
        )
        if data.image_size is None and varied:
            raise InputError(f"the images of {location} differ in size: give --size HxW")
        return cls(dataset, anywhere(location), data)

    def plan(self, model: Model) -> dict[str, Any]:
        """The values that the vectors of `model` depend on."""
        return {
            "model": model.fingerprint,
            "dataset": self.dataset.fingerprint,
            "image_size": list(image_size(self.dataset, self.data)),
            "rows": len(self.dataset),
            **({} if self.data.centre is None else {"centre": self.data.centre}),
        }


Call = tuple[Path, Path, Ids, PipelineSettings, TeacherSettings]
"""The arguments of `embed_part`, after the worker."""
Spread = Callable[[Images, list[Call], int], None]
"""Makes these calls, wherever it does; the last argument counts images that are done already."""


def embed_part(
    worker: ShardWorker,
    model_folder: Path,
    out: Path,
    samples: Ids,
    data: PipelineSettings,
    settings: TeacherSettings,
) -> int:
    """A unit of work: writes the embeddings of `samples` to `out`, and beside it their keys and
    identities as lines of two columns; returns the length of a vector.

    Raises InputError for a sample that is damaged.
    """
    model, embedder, _ = worker.model(model_folder, settings)
    vectors = worker.embed(embedder, samples, data, settings.batch)
    dataset = worker.dataset
    names = dataset.names[dataset.identity[samples]]
    try:
        rows = zip(dataset.keys(samples), names, strict=True)
    except SampleError as error:
        raise InputError(f"{error}: restore the dataset, or build it anew") from error
    write_atomically(out.with_suffix(".tsv"), "".join(map(tsv_line, rows)).encode())
    write_embeddings(out, samples, vectors, model.fingerprint)  # last: it marks the unit as done
    return vectors.shape[1]


def with_actors(settings: ClusterSettings, console: Console) -> Spread:
    """Calls CPU actors on a Ray cluster. Raises InputError, Preempted after SIGTERM."""

    def spread(images: Images, calls: list[Call], done: int) -> None:
        targets = calls[0][1].parent / TARGETS_FOLDER
        total = done + sum(map(images_of, calls))
        with (
            cluster(settings) as ray,
            progress(console, "embedding", total) as hear,
            sigterm() as stop,  # after Ray, which has a handler of its own
        ):
            hear(done)
            pool = ActorPool(
                ray,
                settings,
                dataset=images.location,
                cache=CacheSettings(),
                targets=targets,
                stop=stop,
                units=lambda units, of, images: hear(done + images[0]),
            )
            pool.map(embed_part, list(calls))

    return spread


def embed_shards(
    images: Images, model: Model, samples: Ids, folder: Path, spread: Spread
) -> dict[int, Path]:
    """Embeds `samples` [n] into one file for each shard (`part_file`) in `folder`.

    Existing files are kept, which resumes an interrupted call. Returns the files by shard,
    ascending.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[int, Path] = {}
    calls: list[Call] = []
    for shard, own in units(images.dataset, samples):
        files[shard] = part_file(folder.resolve(), shard, model.fingerprint, generation=0)
        if not files[shard].exists():
            data, how = images.data, TeacherSettings()
            calls.append((model.folder.resolve(), files[shard], own, data, how))
    if calls:
        spread(images, calls, len(samples) - sum(map(images_of, calls)))
    return files


def run_embed(
    model: Model,
    images: Images,
    out: Path | str,
    spread: Spread,
    console: Console,
    features: str | None = None,
) -> None:
    """Puts `model`'s vectors of all `images` into `out`, see `launch.models.sinks.registry`.

    With `features`, writes a folder of MegaFace's feature files with that ending. Resumes an
    interrupted call. Raises InputError.
    """
    sink, plan = sink_at(out, features), images.plan(model)
    if not sink.holds(plan):
        with locked(sink.work):
            elsewhere = f"use another --out, or move {sink.work} away"
            check_same_plan(sink.work / "plan.json", plan, elsewhere)
            part = sink.work / "gallery"
            everything = np.arange(len(images.dataset), dtype=np.int64)
            files = embed_shards(
                images=images, model=model, samples=everything, folder=part, spread=spread
            )
            sink.publish(Made(part, files, plan, images.dataset))
    shutil.rmtree(sink.work, ignore_errors=True)
    console.print(
        f"✓ {sink.place}: {len(images.dataset):,} vectors of {model.settings.dimension} "
        f"numbers by model {model.fingerprint}",
        soft_wrap=True,
    )
