"""What changes while a phase trains: built, saved and put back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.counter import stream_key
from trainer.backbones import build_embedder
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
from trainer.heads.classifier import Classifier
from trainer.heads.collectives import Ranks
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.optimizers import make_optimizer
from trainer.task import Task


@dataclass
class State:
    """What changes while training."""

    engine: Any
    classifier: Classifier
    current: ShardedRows
    previous: ShardedRows | None
    embedder_optimizer: torch.optim.Optimizer
    row_optimizers: dict[str, RowOptimizer]
    """Of the blocks that are trained, by the block's name."""
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
    trained = {"current": fresh}
    if previous is not None:
        previous.to(device)
        if task.recipe.needs.trained_rows:
            trained["previous"] = previous
    embedder_optimizer = make_optimizer(embedder.parameters(), task.training)
    engine = build_engine(embedder, embedder_optimizer, task.training.batch, ranks)
    row_optimizers = {name: RowOptimizer(rows, task.training) for name, rows in trained.items()}
    classifier = Classifier(task.classifier, seed % 2**31, device)
    if task.previous is not None and task.recipe.start == "previous":
        classifier.restore(task.previous.running())
    return State(engine, classifier, fresh, previous, embedder_optimizer, row_optimizers)


def save_state(task: Task, state: State, checkpoints: Checkpoints, ranks: Ranks) -> None:
    """Checkpoints the state before `state.iteration`."""
    files = {
        rows_name(name, ranks): rows_tensors(rows, state.row_optimizers.get(name))
        for name, rows in state.blocks().items()
    }
    if ranks.rank == 0:
        files["classifier"] = state.classifier.running
        files["embedder"] = dict(state.engine.module.state_dict())
        files["optimizer"] = optimizer_tensors(state.embedder_optimizer)
    checkpoints.save(state.iteration, files, {"iteration": state.iteration})


def restore_state(state: State, folder: Path, ranks: Ranks) -> None:
    """Puts a verified checkpoint back, saved at any world size."""
    state.iteration = read_card(folder)["iteration"]
    state.engine.module.load_state_dict(load_tensors(folder, "embedder"))
    load_optimizer(state.embedder_optimizer, load_tensors(folder, "optimizer"))
    state.classifier.restore(load_tensors(folder, "classifier"))
    for name, rows in state.blocks().items():
        tensors = load_rows(folder, name, rows.first, rows.last, ranks)
        rows.weight.data.copy_(tensors["weight"])
        if name in state.row_optimizers:
            for key, held in state.row_optimizers[name].state.items():
                held.copy_(tensors[f"state.{key}"])
