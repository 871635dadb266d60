"""One training phase: one learning step of one method, on every rank."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from data_shards.neighbours import VIEWS, TeacherCache
from monitoring.metrics import Metrics
from trainer.checkpoint import Checkpoints
from trainer.heads.collectives import Ranks
from trainer.model import save_model
from trainer.state import build_state, restore_state, save_state
from trainer.stepper import Stepper
from trainer.task import Task, task_batches
from trainer.teacher import CachedTeacher, NoTeacher, OnlineTeacher, TeacherSource
from trainer.watch import Watch

LOG = logging.getLogger("perennial")


def train(
    task: Task,
    ranks: Ranks,
    device: torch.device,
    metrics: Metrics,
    report: Callable[[dict[str, Any]], None],
    tell: Callable[[str], None] = LOG.warning,
) -> None:
    """Trains the phase from its newest checkpoint to its finished model.

    `report` hears a record every ``log_every`` iterations on every rank, `tell` lines for the user.
    Raises FloatingPointError when the loss is not finite.
    """
    location = task.checkpoints or str(task.folder / "checkpoints")
    with Checkpoints(location, task.training, ranks, metrics, tell) as checkpoints:
        state = build_state(task, ranks, device)
        if (newest := checkpoints.newest()) is not None:
            restore_state(state, newest, ranks)
        teacher = build_teacher(task, ranks, device)
        step = Stepper(task.training, task.recipe, state, teacher, ranks)
        watch = Watch(task, metrics, report, state.iteration)
        for batch in watch.batches(task_batches(task, state.iteration, ranks, device, metrics)):
            losses = step(batch)
            watch.iteration(state.iteration, losses)
            if checkpoints.due(state.iteration):
                save_state(task, state, checkpoints, ranks)
    blocks = list(state.blocks().values())
    save_model(
        task.folder / "model", task.embedder, state.classifier, state.engine.module, blocks, ranks
    )
    checkpoints.clear()


def build_teacher(task: Task, ranks: Ranks, device: torch.device) -> TeacherSource:
    """Whatever the recipe asks the previous model through."""
    needs = task.recipe.needs
    if task.previous is None or not needs.any:
        return NoTeacher()
    rows = task.previous.frozen_rows(ranks).to(device)
    if task.teacher.mode == "online":
        embedder = task.previous.embedder().to(device)
        return OnlineTeacher(embedder, rows, task.previous.classifier, needs)
    views = VIEWS if task.data.augmentation.flip else VIEWS[:1]
    shards = len(task.dataset.manifest["shards"])
    return CachedTeacher(TeacherCache(task.cache, shards, views, task.previous.fingerprint), rows)
