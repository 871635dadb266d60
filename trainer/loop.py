"""One training phase: one learning step of one method, on every rank."""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from data_shards.neighbours import VIEWS, TeacherCache
from data_shards.pipeline import image_size
from monitoring.metrics import Metrics
from trainer.checkpoint import Checkpoints
from trainer.guard import Fault
from trainer.heads.classifier import Classifier
from trainer.heads.collectives import Ranks
from trainer.methods.recipe import OldClassifier
from trainer.model import Model, save_model
from trainer.processor import fallback, multiplies_bf16
from trainer.prototypes import read_prototypes, with_prototypes
from trainer.pulse import Pulse
from trainer.rewinds import Rewinds
from trainer.state import State, build_state, restore_state, save_state
from trainer.stepper import Stepper
from trainer.task import Task, task_batches, task_samples
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
    pulse: Pulse | None = None,
) -> bool:
    """Trains the phase from its newest checkpoint to its finished model.

    `report` hears a record every ``log_every`` iterations on every rank, and of skipped updates
    and rewinds as ``event``s; `tell` hears lines for the user. Returns False when `pulse` of any
    rank asked for a stop: the iteration is then finished and a checkpoint saved. Raises InputError
    when training had to be rewound more often than allowed.
    """
    pulse = pulse or Pulse()
    tell_of_precision(task, ranks, device, tell)
    ranks = replace(ranks, exchanging=pulse.exchanging)
    rewinds = Rewinds(task.folder / "rewinds.jsonl", ranks, task.fence)
    watch = Watch(task, metrics, report, pulse, len(rewinds))
    while True:
        location = task.checkpoints or str(task.folder / "checkpoints")
        with Checkpoints(location, task.training, ranks, metrics, tell, task.fence) as checkpoints:
            ended = attempt(task, ranks, device, checkpoints, watch, rewinds, pulse)
        if ended != "rewound":
            return ended == "finished"
        gc.collect()  # DeepSpeed's engine refers to itself


def tell_of_precision(
    task: Task, ranks: Ranks, device: torch.device, tell: Callable[[str], None]
) -> None:
    """Rank 0 tells where a rank's CPU computes in fp32 what was to be computed in bf16."""
    chosen = {"training": task.training.precision, "classifier": task.classifier.precision}
    asked = [f"{part}.precision" for part, precision in chosen.items() if precision == "bf16"]
    if not asked or device.type != "cpu":
        return
    if ranks.max(torch.tensor(float(not multiplies_bf16()))).item() and ranks.rank == 0:
        tell(fallback(*asked))


def attempt(
    task: Task,
    ranks: Ranks,
    device: torch.device,
    checkpoints: Checkpoints,
    watch: Watch,
    rewinds: Rewinds,
    pulse: Pulse,
) -> Literal["finished", "stopped", "rewound"]:
    """Trains from the newest checkpoint, until something ends it."""
    pulse.turn("preparing")
    state = build_state(task, ranks, device)
    if (newest := checkpoints.newest()) is not None:
        restore_state(state, newest, ranks)
    anchor = build_anchor(task, ranks, device)
    teacher = build_teacher(task, anchor, ranks, device)
    step = Stepper(task.training, task.recipe, state, teacher, ranks, pulse, anchor)
    quarantine = watch.quarantine(rewinds.suspects)
    watch.begin(state.iteration)
    for batch in watch.batches(task_batches(task, state.iteration, ranks, device, quarantine)):
        losses = step(batch)
        watch.iteration(state, losses, step.fault)
        due = step.stopping or checkpoints.due(state.iteration)
        if (why := reason_to_rewind(step, state, due, task, ranks)) is not None:
            samples = np.concatenate([np.empty(0, dtype=np.int64), *step.suspects])
            available, limit = len(task_samples(task)), task.training.guard.max_rewinds
            rewinds.add(state.iteration, why, samples, available, limit)
            watch.rewound(state.iteration, why)
            return "rewound"
        if due and state.guard.streak == 0:
            pulse.turn("saving a checkpoint")
            save_state(task, state, checkpoints, ranks)
        if step.stopping:
            return "stopped"
    pulse.turn("saving the model")
    blocks = list(state.blocks().values())
    save_model(
        task.folder / "model",
        task.embedder,
        image_size(task.dataset, task.data),
        state.classifier,
        state.engine.module,
        blocks,
        task.benchmark.names[: blocks[-1].last].tolist(),
        ranks,
        task.fence,
    )
    checkpoints.clear()
    return "finished"


def reason_to_rewind(
    step: Stepper, state: State, due: bool, task: Task, ranks: Ranks
) -> Fault | None:
    """Why the state must not be trained on, or not be saved when a checkpoint or the end is due."""
    if state.guard.rewinds:
        return step.fault
    kept = due or state.iteration == task.training.iterations
    return "weights" if kept and not state.finite(ranks) else None


def build_teacher(
    task: Task, anchor: OldClassifier | None, ranks: Ranks, device: torch.device
) -> TeacherSource:
    """Whatever the recipe asks the previous model through; rows that `anchor` has are shared."""
    needs, previous = task.recipe.needs, task.previous
    if previous is None or not needs.answers:
        return NoTeacher()
    if anchor is not None and task.recipe.anchor == "previous":
        old = anchor.trained()
    else:
        old = old_classifier(previous, ranks, device)
    if task.teacher.mode == "online":
        return OnlineTeacher(previous.embedder().to(device), old, needs)
    views = VIEWS if task.data.augmentation.flip else VIEWS[:1]
    shards = len(task.dataset.manifest["shards"])
    return CachedTeacher(TeacherCache(task.cache, shards, views, previous.fingerprint), old)


def build_anchor(task: Task, ranks: Ranks, device: torch.device) -> OldClassifier | None:
    """The classifier to stay compatible with, where the recipe asks for one."""
    if task.anchor is None or not task.recipe.needs.classifier:
        return None
    means = None
    if task.recipe.needs.prototypes:
        means = read_prototypes(task.prototypes, task.anchor.fingerprint)
    return old_classifier(task.anchor, ranks, device, means)


def old_classifier(
    model: Model, ranks: Ranks, device: torch.device, prototypes: torch.Tensor | None = None
) -> OldClassifier:
    """A finished model's frozen classifier, followed by `prototypes` [n, d], if any."""
    classifier = Classifier(model.classifier, 0, device)
    classifier.restore(model.running())
    rows = model.frozen_rows(ranks)
    if prototypes is not None:
        rows = with_prototypes(rows, prototypes)
    return OldClassifier(rows.to(device), classifier, model.rows)
