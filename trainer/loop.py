"""One training phase: one learning step of one method, on every rank."""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from data_shards.files import write_json
from data_shards.pipeline import image_size
from data_shards.storage.neighbours import VIEWS, TeacherCache
from monitoring.metrics import Metrics
from trainer.activity import Activity
from trainer.checkpoint import Checkpoints
from trainer.class_means import read_class_means, with_class_means
from trainer.guard import Fault
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import MarginLoss
from trainer.methods.discriminative import Expert, ExpertAnswers
from trainer.methods.forward import OldClassifier
from trainer.methods.wants import Answers, AnswersWithin, ClassMeans, FrozenRows
from trainer.model import Model, save_model
from trainer.processor import fallback, multiplies_bf16
from trainer.rewinds import Rewinds
from trainer.state import State, build_state, restore_state, save_state
from trainer.stepper import Stepper
from trainer.teacher import (
    CachedExpert,
    CachedTeacher,
    ExpertSource,
    NoTeacher,
    OnlineExpert,
    OnlineTeacher,
    TeacherSource,
)
from trainer.training_log import TrainingLog
from trainer.training_spec import TrainingSpec, batches_from, spec_seed, training_samples
from untrusted.files import read_bytes
from untrusted.json_text import parse_json

LOG = logging.getLogger("perennial")
_TRAINED = "trained.json"
"""Which training made the model beside it: written once that is whole, before checkpoints go."""


def train(
    spec: TrainingSpec,
    ranks: Ranks,
    device: torch.device,
    metrics: Metrics,
    report: Callable[[dict[str, Any]], None],
    tell: Callable[[str], None] = LOG.warning,
    activity: Activity | None = None,
) -> bool:
    """Trains the phase from its newest checkpoint to its finished model.

    `report` hears a record every ``log_every`` iterations on every rank, and of skipped updates
    and rewinds as ``event``s; `tell` hears lines for the user. Returns False when `activity` of any
    rank asked for a stop: the iteration is then finished and a checkpoint saved. Raises Diverged
    when training had to be rewound more often than allowed.
    """
    activity = activity or Activity()
    if trained_before(spec, ranks):
        return True
    tell_of_precision(spec, ranks, device, tell)
    ranks = replace(ranks, exchanging=activity.exchanging)
    rewinds = Rewinds(spec.folder / "rewinds.jsonl", ranks, spec.fence)
    watch = TrainingLog(
        spec=spec, metrics=metrics, report=report, activity=activity, rewinds=len(rewinds)
    )
    while True:
        location = spec.checkpoints or str(spec.folder / "checkpoints")
        with Checkpoints(
            location=location,
            settings=spec.training,
            ranks=ranks,
            metrics=metrics,
            tell=tell,
            fence=spec.fence,
        ) as checkpoints:
            ended = attempt(spec, ranks, device, checkpoints, watch, rewinds, activity)
        if ended != "rewound":
            return ended == "finished"
        gc.collect()  # DeepSpeed's engine refers to itself


def trained_before(spec: TrainingSpec, ranks: Ranks) -> bool:
    """Whether the whole model of this very training lies there. Rank 0 looks, for all of them."""
    path = spec.folder / _TRAINED
    if ranks.rank or not spec.origin or not path.exists():
        found = False
    else:
        try:
            facts = parse_json(read_bytes(path, 1 << 20))
            model = Model.open(spec.folder / "model")
            found = facts == _result(spec, model)
        except (OSError, ValueError):  # it is made anew
            found = False
    return bool(ranks.broadcast_object(found))


def _result(spec: TrainingSpec, model: Model) -> dict[str, str]:
    return {"training": spec.origin, "model": model.fingerprint}


def tell_of_precision(
    spec: TrainingSpec, ranks: Ranks, device: torch.device, tell: Callable[[str], None]
) -> None:
    """Rank 0 tells where a rank's CPU computes in fp32 what was to be computed in bf16."""
    chosen = {"training": spec.training.precision, "classifier": spec.classifier.precision}
    asked = [f"{part}.precision" for part, precision in chosen.items() if precision == "bf16"]
    if not asked or device.type != "cpu":
        return
    if ranks.max(torch.tensor(float(not multiplies_bf16()))).item() and ranks.rank == 0:
        tell(fallback(*asked))


def attempt(
    spec: TrainingSpec,
    ranks: Ranks,
    device: torch.device,
    checkpoints: Checkpoints,
    watch: TrainingLog,
    rewinds: Rewinds,
    activity: Activity,
) -> Literal["finished", "stopped", "rewound"]:
    """Trains from the newest checkpoint, until something ends it."""
    activity.turn("preparing")
    state = build_state(spec, ranks, device)
    if (newest := checkpoints.newest()) is not None:
        restore_state(state, newest, ranks)
    step = build_stepper(spec, state, ranks, device, activity)
    quarantine = watch.quarantine(rewinds.suspects)
    watch.begin(state.iteration)
    for batch in watch.batches(
        batches_from(
            spec=spec, start=state.iteration, ranks=ranks, device=device, quarantine=quarantine
        )
    ):
        losses = step(batch)
        watch.iteration(state, losses, step.fault)
        due = step.stopping or checkpoints.due(state.iteration)
        if (
            why := reason_to_rewind(step=step, state=state, due=due, spec=spec, ranks=ranks)
        ) is not None:
            samples = np.concatenate([np.empty(0, dtype=np.int64), *step.suspects])
            available, limit = len(training_samples(spec)), spec.training.guard.max_rewinds
            rewinds.add(state.iteration, why, samples, available, limit)
            watch.rewound(state.iteration, why)
            return "rewound"
        if due and state.guard.streak == 0:
            activity.turn("saving a checkpoint")
            save_state(spec, state, checkpoints, ranks)
        if step.stopping:
            return "stopped"
    activity.turn("saving the model")
    save_finished(spec, state, ranks)
    checkpoints.clear()
    return "finished"


def save_finished(spec: TrainingSpec, state: State, ranks: Ranks) -> None:
    """Leaves the trained model, and then whose it is."""
    blocks = list(state.blocks.values())
    save_model(
        folder=spec.folder / "model",
        settings=spec.embedder,
        image_size=image_size(spec.dataset, spec.data),
        classifier=state.classifier,
        embedder=state.engine.module,
        blocks=blocks,
        names=spec.benchmark.names[: blocks[-1].last].tolist(),
        ranks=ranks,
        fence=spec.fence,
        centre=spec.data.centre,
    )
    if spec.origin and ranks.rank == 0:
        spec.fence()
        write_json(spec.folder / _TRAINED, _result(spec, Model.open(spec.folder / "model")))


def build_stepper(
    spec: TrainingSpec, state: State, ranks: Ranks, device: torch.device, activity: Activity
) -> Stepper:
    """What makes the updates of `state`, with all that earlier models and phases say."""
    anchor = build_anchor(spec, ranks, device)
    teacher = build_teacher(spec, anchor, ranks, device)
    loaded = {
        type(want): want.load(spec.prepared[type(want)], ranks, device)
        for want in spec.recipe.wants
        if type(want) in spec.prepared
    }
    if spec.recipe.want(AnswersWithin) is not None and spec.previous is not None:
        loaded[AnswersWithin] = spec.previous.embedder().to(device)
    return Stepper(
        training=spec.training,
        recipe=spec.recipe,
        state=state,
        teacher=teacher,
        ranks=ranks,
        activity=activity,
        anchor=anchor,
        loaded=loaded,
        seed=spec_seed(spec, "replay"),
        expert=build_expert(spec, ranks, device),
    )


def reason_to_rewind(
    step: Stepper, state: State, due: bool, spec: TrainingSpec, ranks: Ranks
) -> Fault | None:
    """Why the state must not be trained on, or not be saved when a checkpoint or the end is due."""
    if state.guard.rewinds:
        return step.fault
    kept = due or state.iteration == spec.training.iterations
    return "weights" if kept and not state.finite(ranks) else None


def build_teacher(
    spec: TrainingSpec, anchor: OldClassifier | None, ranks: Ranks, device: torch.device
) -> TeacherSource:
    """Where the previous model's `Answers` come from."""
    wanted, previous = spec.recipe.want(Answers), spec.previous
    if previous is None or wanted is None:
        return NoTeacher()
    if anchor is not None and spec.recipe.anchor == "previous":
        # one model: its frozen rows are held once, not once for each
        old = anchor.trained()
    else:
        old = old_classifier(previous, ranks, device)
    if spec.teacher.mode == "online":
        return OnlineTeacher(previous.embedder().to(device), old, wanted)
    return CachedTeacher(cache_of(spec, spec.cache, previous), old)


def build_expert(spec: TrainingSpec, ranks: Ranks, device: torch.device) -> ExpertSource | None:
    """What the temporary expert's embeddings come from, where the recipe wants one."""
    if spec.recipe.want(Expert) is None:
        return None
    model = Model.open(spec.prepared[Expert])
    if spec.teacher.mode == "online":
        return OnlineExpert(model.embedder().to(device), ranks)
    cache = cache_of(spec, spec.prepared[ExpertAnswers], model)
    return CachedExpert(cache, ranks)


def cache_of(spec: TrainingSpec, folder: Path, model: Model) -> TeacherCache:
    """What was computed ahead of the images, by a `model`."""
    views = VIEWS if spec.data.augmentation.flip else VIEWS[:1]
    return TeacherCache(folder, len(spec.dataset.manifest["shards"]), views, model.fingerprint)


def build_anchor(spec: TrainingSpec, ranks: Ranks, device: torch.device) -> OldClassifier | None:
    """The classifier to stay compatible with, where the recipe wants one."""
    if spec.anchor is None or spec.recipe.want(FrozenRows) is None:
        return None
    means = None
    if spec.recipe.want(ClassMeans) is not None:
        means = read_class_means(spec.class_means, spec.anchor.fingerprint)
    return old_classifier(spec.anchor, ranks, device, means)


def old_classifier(
    model: Model, ranks: Ranks, device: torch.device, class_means: torch.Tensor | None = None
) -> OldClassifier:
    """A finished model's frozen classifier, followed by `class_means` [n, d], if any."""
    classifier = MarginLoss(model.classifier, 0, device)
    classifier.restore(model.running())
    rows = model.frozen_rows(ranks)
    if class_means is not None:
        rows = with_class_means(rows, class_means)
    return OldClassifier(rows.to(device), classifier, model.rows)
