"""Embeds all images of a dataset with a model, shard by shard, resuming after an interruption."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from data_shards.files import fsync, sha256, write_atomically, write_json
from data_shards.pipeline import PipelineSettings, image_size, resized
from data_shards.settings import InputError
from data_shards.storage.dataset import SampleError, ShardDataset
from data_shards.storage.features import feature_name, write_feature
from data_shards.storage.remote import CacheSettings, anywhere
from launch.config.cluster import ClusterSettings
from launch.execution.actor_pool import ActorPool
from launch.execution.ray_cluster import cluster
from launch.exits import sigterm
from launch.inference.embed import units
from launch.inference.worker import ShardWorker
from launch.models.work_folder import check_same_plan, locked
from launch.terminal.progress import progress
from monitoring.run_folder import LOGS_FOLDER, TARGETS_FOLDER
from trainer.adopted import AdoptedSettings
from trainer.arrays import read_embeddings, write_embeddings
from trainer.gallery import Gallery, Part, part_file
from trainer.model import Model
from trainer.teacher import TeacherSettings
from untrusted.text import tsv_cells, tsv_line

Ids = NDArray[np.int64]
FLAT = (".npy", ".safetensors")
FEATURES = "features.json"
"""File with the plan that a folder of feature files was made by."""


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
"""Makes these calls, wherever it does; the last argument counts calls that are done already."""


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
        targets, total = calls[0][1].parent / TARGETS_FOLDER, done + len(calls)
        with (
            cluster(settings) as ray,
            progress(console, "embedding", total, "shards") as hear,
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
                units=lambda more, _: hear(done + more),
            )
            pool.map(embed_part, list(calls))

    return spread


def embed_shards(
    images: Images, model: Model, samples: Ids, folder: Path, generation: int, spread: Spread
) -> dict[int, Path]:
    """Embeds `samples` [n] into one file for each shard (`part_file`) in `folder`.

    Existing files are kept, which resumes an interrupted call. Returns the files by shard,
    ascending.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[int, Path] = {}
    calls: list[Call] = []
    for shard, own in units(images.dataset, samples):
        files[shard] = part_file(folder.resolve(), shard, model.fingerprint, generation)
        if not files[shard].exists():
            data, how = images.data, TeacherSettings()
            calls.append((model.folder.resolve(), files[shard], own, data, how))
    if calls:
        spread(images, calls, len(files) - len(calls))
    return files


def run_embed(
    model: Model,
    images: Images,
    out: Path,
    spread: Spread,
    console: Console,
    features: str | None = None,
) -> None:
    """Writes `model`'s vectors of all `images` to `out`: a gallery's folder, .npy or .safetensors.

    With `features`, writes a folder of MegaFace's feature files with that ending. Resumes an
    interrupted call. Raises InputError.
    """
    _check_name(out)
    plan, work = images.plan(model), out.with_name(f".{out.name}.embedding")
    if features is not None:
        plan["features"] = features
        if out.suffix in FLAT:
            raise InputError(f"--features writes a folder of files: {out} is the name of a file")
    if out.exists():
        _check_same(out, plan)
    else:
        with locked(work):
            check_same_plan(work / "plan.json", plan, f"use another --out, or move {work} away")
            everything = np.arange(len(images.dataset), dtype=np.int64)
            part = work / "gallery"
            files = embed_shards(
                images=images,
                model=model,
                samples=everything,
                folder=part,
                generation=0,
                spread=spread,
            )
            finish = _publish_flat if out.suffix in FLAT else _publish_gallery
            if features is not None:
                finish = _publish_features
            finish(out, part, files, plan)
    shutil.rmtree(work, ignore_errors=True)
    console.print(
        f"✓ {out}: {len(images.dataset):,} vectors of {model.settings.dimension} "
        f"numbers by model {model.fingerprint}",
        soft_wrap=True,
    )


def _check_name(out: Path) -> None:
    """Raises InputError for a file name with an unknown suffix, such as vectors.csv."""
    looks_like_a_file = re.fullmatch(r"\.[A-Za-z][A-Za-z0-9]{0,9}", out.suffix)
    if out.suffix not in FLAT and looks_like_a_file and not out.is_dir():
        raise InputError(
            f"--out {out}: no {out.suffix} is written: end its name in .npy or .safetensors, or "
            "give a folder's name without an ending"
        )


def _check_same(out: Path, plan: dict[str, Any]) -> None:
    """Raises InputError unless `out` holds exactly these vectors."""
    remedy = "give another --out"
    if "features" in plan:
        card = out / FEATURES
    elif out.suffix in FLAT:
        card = out.with_suffix(".json")
    else:
        gallery = Gallery.open(out)
        if [gallery.dataset, *gallery.dimensions] != [plan["dataset"], plan["model"]]:
            models = " and ".join(gallery.dimensions)
            raise InputError(f"{out} is of dataset {gallery.dataset}, by model {models}: {remedy}")
        return
    if not card.exists():
        raise InputError(f"{out} exists and was not written by this command: {remedy}")
    check_same_plan(card, plan, remedy)


def _join_lines(files: Iterable[Path], target: Path) -> None:
    """Concatenates the ids of the vectors `files` into `target`."""
    with target.open("wb") as joined:
        joined.write(b"key\tidentity\n")
        for file in files:
            with file.with_suffix(".tsv").open("rb") as lines:
                shutil.copyfileobj(lines, joined)
    fsync(target)


def _publish_gallery(out: Path, part: Path, files: dict[int, Path], plan: dict[str, Any]) -> None:
    """Turns the folder `part` into the gallery `out`; the rename comes when it is complete."""
    model = plan["model"]
    rows = {shard: read_embeddings(file, model)[1].shape for shard, file in files.items()}
    parts = tuple(
        Part(file.name, shard, model, rows[shard][0], sha256(file)) for shard, file in files.items()
    )
    _join_lines(files.values(), part / "ids.tsv")
    dimension = next(iter(rows.values()))[1]
    Gallery(part, plan["dataset"], {model: dimension}, parts).save()
    part.rename(out)
    for file in files.values():
        (out / file.name).with_suffix(".tsv").unlink()
    for of_the_actors in (TARGETS_FOLDER, LOGS_FOLDER):
        shutil.rmtree(out / of_the_actors, ignore_errors=True)


def _publish_features(out: Path, part: Path, files: dict[int, Path], plan: dict[str, Any]) -> None:
    """Writes a feature file for each image; the folder is renamed to `out` when it is complete."""
    tree = part / "features"
    shutil.rmtree(tree, ignore_errors=True)
    for file in files.values():
        _, vectors = read_embeddings(file, plan["model"])
        with file.with_suffix(".tsv").open(newline="\n", encoding="utf-8") as lines:
            keys = [tsv_cells(line)[0] for line in lines]
        for key, vector in zip(keys, vectors, strict=True):
            write_feature(tree / feature_name(key, plan["features"]), vector)
    write_json(tree / FEATURES, plan)
    os.sync()  # once: a million files written atomically would be flushed a million times
    tree.rename(out)


def _publish_flat(out: Path, part: Path, files: dict[int, Path], plan: dict[str, Any]) -> None:
    """Joins the vectors into one file [n, d], through a memory map.

    It gets its name last, so that a file that is there has its ids and its card.
    """
    dimension = read_embeddings(next(iter(files.values())), plan["model"])[1].shape[1]
    card = {**plan, "dimension": dimension}
    joined = part / f"joined{out.suffix}"
    create = _npy if out.suffix == ".npy" else _safetensors
    whole = create(joined, (plan["rows"], dimension), card)
    done = 0
    for file in files.values():
        _, vectors = read_embeddings(file, plan["model"])
        whole[done : done + len(vectors)] = vectors
        done += len(vectors)
    whole.flush()
    fsync(joined)
    _join_lines(files.values(), part / "ids.tsv")
    write_json(part / "card.json", card)
    (part / "ids.tsv").rename(out.with_suffix(".ids.tsv"))
    (part / "card.json").rename(out.with_suffix(".json"))
    joined.rename(out)
    fsync(out.parent)


def _npy(path: Path, shape: tuple[int, int], card: dict[str, Any]) -> np.memmap:
    return np.lib.format.open_memmap(path, "w+", np.float32, shape)


def _safetensors(path: Path, shape: tuple[int, int], card: dict[str, Any]) -> np.memmap:
    length = 4 * shape[0] * shape[1]
    facts = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, length]}
    metadata = {key: json.dumps(value).strip('"') for key, value in card.items()}
    header = json.dumps({"__metadata__": metadata, "vectors": facts}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return np.memmap(path, np.float32, "r+", 8 + len(header), shape)
