"""Upgrades stored vectors to another model, within a budget of images at a time."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_shards.files import write_json
from data_shards.settings import InputError
from launch.models.embed import Images, Spread, embed_shards
from launch.models.sinks.interface import Made, Store
from launch.models.sinks.registry import store_at
from launch.models.work_folder import check_same_plan
from trainer.arrays import read_arrays, stored_model, write_arrays
from trainer.gallery import Held, Ids, Order, chosen
from trainer.model import Model

SAMPLES, PLAN = "samples.safetensors", "plan.json"


def run_backfill(
    where: Path | str,
    images: Images,
    model: Model,
    budget: int,
    order: Order,
    spread: Spread,
    console: Console,
) -> None:
    """Replaces up to `budget` of the vectors stored there by `model`'s of the same `images`.

    The same call resumes an interrupted upgrade. Raises InputError.
    """
    store = store_at(where)
    wanted = images.dataset.fingerprint, model.settings.dimension
    with store.locked():
        with store.held(*wanted) as held:
            _check(store, held, model)
            plan = {**images.plan(model), "budget": budget, "order": order}
            samples = _begun(store, held, images, model.fingerprint, plan)
        if len(samples):
            files = embed_shards(
                images=images, model=model, samples=samples, folder=store.upgrade, spread=spread
            )
            store.replace(Made(store.upgrade, files, plan, images.dataset))
        (store.upgrade / PLAN).unlink()  # first: without it the rest of the folder does not count
        shutil.rmtree(store.upgrade)
        with store.held(*wanted) as held:
            _tell(store, held, model, console)


def _check(store: Store, held: Held, model: Model) -> None:
    """Raises InputError when there are vectors of two other models."""
    others = held.others(model.fingerprint)
    if len(others) > 1:
        raise InputError(
            f"{store.place} is on the way from model {others[0]} to {others[1]}, with "
            f"{held.rows(others[0]):,} vectors to go: finish that before you begin with another"
        )


def _begun(store: Store, held: Held, images: Images, model: str, plan: dict[str, Any]) -> Ids:
    """The samples [n] to embed now: those chosen by an interrupted upgrade, or newly chosen ones.

    Empty if the interrupted upgrade is complete but for deleting its work folder. Raises InputError
    when it was another upgrade.
    """
    work = store.upgrade
    if not (work / PLAN).exists():
        shutil.rmtree(work, ignore_errors=True)  # vectors of an upgrade that is over
        samples = chosen(
            gallery=held,
            model=model,
            identity=images.dataset.identity,
            budget=plan["budget"],
            order=plan["order"],
        )
        write_arrays(work / SAMPLES, {"samples": samples}, held.fingerprint)
        write_json(work / PLAN, plan)  # last: it makes the choice valid
        return samples
    check_same_plan(work / PLAN, plan, "finish it first, by the same command as before")
    # chosen from other vectors than today's: the upgrade was applied before it was interrupted
    if stored_model(work / SAMPLES) != held.fingerprint:
        return np.empty(0, np.int64)
    begun, count = read_arrays(work / SAMPLES).get("samples"), len(images.dataset)
    if begun is None or begun.dtype != np.int64 or begun.ndim != 1:
        raise InputError(f"{work / SAMPLES} holds no samples: delete {work}")
    if ((begun < 0) | (begun >= count)).any() or (np.diff(begun) <= 0).any():
        raise InputError(f"{work / SAMPLES} holds other samples than there are: delete {work}")
    return begun


def _tell(store: Store, held: Held, model: Model, console: Console) -> None:
    new, others = held.rows(model.fingerprint), held.others(model.fingerprint)
    every = new + sum(map(held.rows, others))
    left = "nothing is left to do" if new == every else f"{every - new:,} are of {others[0]}"
    console.print(
        f"✓ {store.place}: {new:,} of {every:,} vectors ({new / every:.1%}) are of "
        f"model {model.fingerprint}; {left}",
        soft_wrap=True,
    )
