"""Upgrades a gallery to another model, within a budget of images at a time."""

import shutil
from pathlib import Path

import numpy as np
from rich.console import Console

from data_shards.files import write_json
from data_shards.settings import InputError
from launch.models.embed import Images, Spread, embed_shards
from launch.models.work_folder import check_same_plan, locked
from trainer.arrays import read_arrays, read_embeddings, stored_model, write_arrays
from trainer.gallery import Gallery, Ids, Order, chosen, upgraded
from trainer.model import Model

WORK = "upgrade"
"""Subfolder of a gallery with the vectors that an unfinished upgrade has embedded so far."""
SAMPLES, PLAN = "samples.safetensors", "plan.json"


def run_backfill(
    folder: Path,
    images: Images,
    model: Model,
    budget: int,
    order: Order,
    spread: Spread,
    console: Console,
) -> None:
    """Replaces up to `budget` of the gallery's vectors by `model`'s of the same `images`.

    Atomic: at any moment the gallery is the old or the new one. The same call resumes an
    interrupted upgrade. Raises InputError.
    """
    Gallery.open(folder)  # before `locked`, which would make a missing folder
    with locked(folder):
        gallery = Gallery.open(folder)
        _check(gallery, images, model)
        samples = _begun(gallery=gallery, images=images, model=model, budget=budget, order=order)
        if len(samples):
            work = folder / WORK
            files = embed_shards(
                images=images,
                model=model,
                samples=samples,
                folder=work,
                generation=gallery.generation + 1,
                spread=spread,
            )
            apply(gallery, model.fingerprint, files)
        gallery = Gallery.open(folder)
        gallery.sweep()  # after the index was replaced: until then the old files count
        (folder / WORK / PLAN).unlink()  # first: without it the rest of the folder does not count
        shutil.rmtree(folder / WORK)
        _tell(gallery, model, console)


def apply(gallery: Gallery, model: str, files: dict[int, Path]) -> None:
    """Replaces vectors by those of `model` in `files`, by shard, atomically."""
    dimension = read_embeddings(next(iter(files.values())), model)[1].shape[1]
    fresh = ((shard, *read_embeddings(file, model)) for shard, file in files.items())
    after = upgraded(gallery, model, dimension, fresh)
    after.save()


def _check(gallery: Gallery, images: Images, model: Model) -> None:
    """Raises InputError when the gallery has other images, or vectors of two other models."""
    if gallery.dataset != images.dataset.fingerprint:
        raise InputError(
            f"{gallery.folder} is of dataset {gallery.dataset}, not {images.dataset.fingerprint}: "
            "give the --shards that it was made of"
        )
    others = gallery.others(model.fingerprint)
    if len(others) > 1:
        raise InputError(
            f"{gallery.folder} is on the way from model {others[0]} to {others[1]}, with "
            f"{gallery.rows(others[0]):,} vectors to go: finish that before you begin with another"
        )


def _begun(gallery: Gallery, images: Images, model: Model, budget: int, order: Order) -> Ids:
    """The samples [n] to embed now: those chosen by an interrupted upgrade, or newly chosen ones.

    Empty if the interrupted upgrade is complete but for deleting its work folder. Raises InputError
    when it was another upgrade.
    """
    work = gallery.folder / WORK
    plan = {**images.plan(model), "budget": budget, "order": order}
    if not (work / PLAN).exists():
        samples = chosen(
            gallery=gallery,
            model=model.fingerprint,
            identity=images.dataset.identity,
            budget=budget,
            order=order,
        )
        write_arrays(work / SAMPLES, {"samples": samples}, gallery.fingerprint)
        write_json(work / PLAN, plan)  # last: it makes the choice valid
        return samples
    check_same_plan(work / PLAN, plan, "finish it first, by the same command as before")
    # chosen from another gallery than today's: the upgrade was applied before it was interrupted
    if stored_model(work / SAMPLES) != gallery.fingerprint:
        return np.empty(0, np.int64)
    begun, count = read_arrays(work / SAMPLES).get("samples"), len(images.dataset)
    if begun is None or begun.dtype != np.int64 or begun.ndim != 1:
        raise InputError(f"{work / SAMPLES} holds no samples: delete {work}")
    if ((begun < 0) | (begun >= count)).any() or (np.diff(begun) <= 0).any():
        raise InputError(f"{work / SAMPLES} holds other samples than there are: delete {work}")
    return begun


def _tell(gallery: Gallery, model: Model, console: Console) -> None:
    new, every = gallery.rows(model.fingerprint), sum(part.rows for part in gallery.parts)
    left = (
        "nothing is left to do"
        if new == every
        else f"{every - new:,} are of {gallery.others(model.fingerprint)[0]}"
    )
    console.print(
        f"✓ {gallery.folder}: {new:,} of {every:,} vectors ({new / every:.1%}) are of "
        f"model {model.fingerprint}; {left}",
        soft_wrap=True,
    )
