"""One training phase: one learning step of one method, on every rank."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.benchmark import Benchmark
from data_shards.counter import stream_key
from data_shards.dataset import ShardDataset
from data_shards.neighbours import VIEWS, TeacherCache
from data_shards.order import Order, rank_slice
from data_shards.pipeline import Batch, PipelineSettings, Quarantine, training_batches
from monitoring.metrics import Metrics
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.batch_norm import synchronise_batch_norm
from trainer.checkpoint import (
    Checkpoints,
    load_optimizer,
    load_rows,
    load_tensors,
    optimizer_tensors,
    read_card,
    rows_name,
    rows_tensors,
)
from trainer.engine import build_engine
from trainer.heads.collectives import Ranks, gather_embeddings
from trainer.heads.rows import ShardedRows
from trainer.methods.recipe import Forward, Recipe
from trainer.model import Model, save_model
from trainer.optimizers import (
    TrainingSettings,
    learning_rate,
    make_optimizer,
    set_learning_rate,
)
from trainer.teacher import CachedTeacher, NoTeacher, OnlineTeacher, TeacherSettings, TeacherSource


@dataclass(frozen=True)
class Task:
    """Everything that decides a training phase's result."""

    dataset: ShardDataset
    benchmark: Benchmark
    data: PipelineSettings
    embedder: EmbedderSettings
    training: TrainingSettings
    teacher: TeacherSettings
    recipe: Recipe
    """As it applies at this step (`Recipe.at`)."""
    seed: int
    step: int
    previous: Model | None
    """The model of the step before; none at step 0."""
    cache: Path
    """Folder of the cached teacher's files."""
    folder: Path
    """Where the step's checkpoints and model go."""


@dataclass
class State:
    """What changes while training."""

    engine: Any
    current: ShardedRows
    previous: ShardedRows | None
    embedder_optimizer: torch.optim.Optimizer
    rows_optimizer: torch.optim.Optimizer
    iteration: int = 0

    def blocks(self) -> dict[str, ShardedRows]:
        """The blocks of rows by name."""
        held = {"previous": self.previous, "current": self.current}
        return {name: rows for name, rows in held.items() if rows is not None}


def build_state(task: Task, ranks: Ranks, device: torch.device) -> State:
    """The embedder, rows and optimisers as they are before the first iteration."""
    seed = int(stream_key(task.seed, "step", task.step) >> 1)
    last = task.benchmark.rows[task.step]
    embedder = build_embedder(task.embedder, seed)
    old = 0 if task.previous is None else task.previous.rows
    fresh = ShardedRows.new(old, last, task.embedder.dimension, seed % 2**31, ranks)
    previous = None
    if task.previous is not None:
        previous = task.previous.sharded_rows(ranks)
        if task.recipe.start == "previous":
            embedder.load_state_dict(task.previous.embedder().state_dict())
    if task.recipe.data == "all" and previous is not None:
        order = torch.cat([previous.own_ids(), fresh.own_ids()]).argsort()
        weight = torch.cat([previous.weight.detach(), fresh.weight.detach()])[order]
        fresh, previous = ShardedRows(0, last, weight, ranks), None
    synchronise_batch_norm(embedder, ranks)
    embedder.to(device).train()
    fresh.to(device)
    trained = [fresh.weight]
    if previous is not None:
        previous.to(device)
        if task.recipe.needs.trained_rows:
            trained.append(previous.weight)
    embedder_optimizer = make_optimizer(embedder.parameters(), task.training)
    engine = build_engine(embedder, embedder_optimizer, task.training.batch, ranks)
    rows_optimizer = make_optimizer(trained, task.training)
    return State(engine, fresh, previous, embedder_optimizer, rows_optimizer)


def build_teacher(task: Task, ranks: Ranks, device: torch.device) -> TeacherSource:
    """Whatever the recipe asks the previous model through."""
    needs = task.recipe.needs
    if task.previous is None or not needs.any:
        return NoTeacher()
    rows = task.previous.sharded_rows(ranks).to(device).requires_grad_(False)
    if task.teacher.mode == "online":
        return OnlineTeacher(task.previous.embedder().to(device), rows, needs)
    views = VIEWS if task.data.augmentation.flip else VIEWS[:1]
    shards = len(task.dataset.manifest["shards"])
    return CachedTeacher(TeacherCache(task.cache, shards, views, task.previous.fingerprint), rows)


def save_state(task: Task, state: State, checkpoints: Checkpoints, ranks: Ranks) -> None:
    """Checkpoints the state before `state.iteration`."""
    files = {
        rows_name(name, ranks): rows_tensors(rows, state.rows_optimizer)
        for name, rows in state.blocks().items()
    }
    if ranks.rank == 0:
        files["embedder"] = dict(state.engine.module.state_dict())
        files["optimizer"] = optimizer_tensors(state.embedder_optimizer)
    checkpoints.save(state.iteration, files, {"iteration": state.iteration})


def restore_state(state: State, folder: Path, ranks: Ranks) -> None:
    """Puts a verified checkpoint back, saved at any world size."""
    state.iteration = read_card(folder)["iteration"]
    state.engine.module.load_state_dict(load_tensors(folder, "embedder"))
    load_optimizer(state.embedder_optimizer, load_tensors(folder, "optimizer"))
    for name, rows in state.blocks().items():
        tensors = load_rows(folder, name, rows.first, rows.last, ranks)
        device = rows.weight.device
        rows.weight.data.copy_(tensors.pop("weight"))
        for key, value in tensors.items():
            kept = value if value.dim() == 0 else value.to(device)
            state.rows_optimizer.state[rows.weight][key.removeprefix("state.")] = kept


class Stepper:
    """One optimiser update: the embedder's forward, the terms, backward, both optimisers."""

    def __init__(
        self,
        training: TrainingSettings,
        recipe: Recipe,
        state: State,
        teacher: TeacherSource,
        ranks: Ranks,
    ) -> None:
        self._training, self._recipe = training, recipe
        self._state, self._teacher, self._ranks = state, teacher, ranks
        batch, world = training.batch, ranks.world
        parts = [rank_slice(batch, rank, world) for rank in range(world)]
        self._counts = [part.stop - part.start for part in parts]

    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Returns each term's mean over the global batch, and their weighted sum as ``loss``."""
        state = self._state
        rate = learning_rate(self._training, state.iteration)
        set_learning_rate(state.embedder_optimizer, rate)
        set_learning_rate(state.rows_optimizer, rate)
        teacher = self._teacher(batch, self._counts)
        half = self._training.precision == "bf16"
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=half):
            embeddings = state.engine(batch.images)
        gathered = gather_embeddings(embeddings.float(), self._ranks, self._counts)
        labels = self._ranks.gather(batch.labels, self._counts)
        forward = Forward(gathered, labels, state.current, state.previous, teacher)
        losses, total = {}, gathered.new_zeros(())
        for term in self._recipe.terms:
            numerator, denominator = term(forward)
            mean = numerator / denominator
            losses[type(term).__name__.lower()] = mean.detach()
            total = total + term.weight * mean
        state.engine.backward(total)
        state.engine.step()
        state.rows_optimizer.step()
        state.rows_optimizer.zero_grad(set_to_none=True)
        state.iteration += 1
        return {**losses, "loss": total.detach()}


def train(
    task: Task,
    ranks: Ranks,
    device: torch.device,
    metrics: Metrics,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Trains the phase from its newest checkpoint to its finished model.

    `report` hears a record every ``log_every`` iterations on every rank. Raises
    FloatingPointError when the loss is not finite.
    """
    checkpoints = Checkpoints(task.folder / "checkpoints", task.training.keep_checkpoints, ranks)
    state = build_state(task, ranks, device)
    if (newest := checkpoints.newest()) is not None:
        restore_state(state, newest, ranks)
    teacher = build_teacher(task, ranks, device)
    step = Stepper(task.training, task.recipe, state, teacher, ranks)
    watch = Watch(task, metrics, report, state.iteration)
    for batch in watch.batches(task_batches(task, state.iteration, ranks, device, metrics)):
        losses = step(batch)
        watch.iteration(state.iteration, losses)
        if state.iteration % task.training.checkpoint_every == 0:
            save_state(task, state, checkpoints, ranks)
    blocks = list(state.blocks().values())
    save_model(task.folder / "model", task.embedder, state.engine.module, blocks, ranks)
    checkpoints.clear()


def task_batches(
    task: Task, start: int, ranks: Ranks, device: torch.device, metrics: Metrics
) -> Iterator[Batch]:
    """This rank's batches from iteration `start` on."""
    seed = int(stream_key(task.seed, "order", task.step) >> 1)
    samples = task.benchmark.step_samples(task.step, task.recipe.data == "all")
    quarantine = Quarantine(
        task.folder / "quarantine.jsonl", task.data.max_quarantined, metrics.quarantined.inc
    )
    return training_batches(
        task.dataset,
        task.benchmark.row,
        Order(samples, seed),
        seed,
        range(start, task.training.iterations),
        task.training.batch,
        ranks.rank,
        ranks.world,
        task.data,
        device,
        quarantine,
    )


class Watch:
    """Times the loop, keeps its metrics, and reports now and then."""

    def __init__(
        self,
        task: Task,
        metrics: Metrics,
        report: Callable[[dict[str, Any]], None],
        start: int,
    ) -> None:
        self._task, self._metrics, self._report = task, metrics, report
        self._since, self._last, self._wait = time.monotonic(), start, 0.0

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time waited for each counted."""
        while True:
            begun = time.monotonic()
            batch = next(batches, None)
            waited = time.monotonic() - begun
            self._wait += waited
            self._metrics.data_wait.inc(waited)
            if batch is None:
                return
            yield batch

    def iteration(self, done: int, losses: dict[str, torch.Tensor]) -> None:
        """Counts an iteration; every ``log_every`` of them, looks at the losses and reports."""
        training = self._task.training
        self._metrics.iterations.inc()
        self._metrics.images.inc(training.batch)
        if done % training.log_every and done != training.iterations:
            return
        values = {name: float(value) for name, value in losses.items()}
        if not all(map(torch.isfinite, losses.values())):
            raise FloatingPointError(
                f"the loss is not finite at iteration {done}: {values}; lower "
                "training.learning_rate or the method's weight"
            )
        now = time.monotonic()
        elapsed, count = now - self._since, done - self._last
        record = {
            "iteration": done,
            "of": training.iterations,
            "learning_rate": learning_rate(training, done - 1),
            "images_per_second": training.batch * count / elapsed,
            "data_wait_share": self._wait / elapsed,
            **values,
        }
        self._since, self._last, self._wait = now, done, 0.0
        self._metrics.loss.set(values["loss"])
        self._metrics.iteration_seconds.observe(elapsed / count)
        self._report(record)
