"""What changes while a phase trains: built, saved and put back."""

from dataclasses import dataclass, field
from typing import Any

import torch

from data_shards.settings import InputError
from trainer.backbones import build_embedder
from trainer.batch_norm import synchronise_batch_norm
from trainer.checkpoint import Checkpoints, Folder
from trainer.checkpoint.format import CARD
from trainer.checkpoint.optimizer import load_optimizer, optimizer_tensors
from trainer.checkpoint.rows import load_rows, part_name, parts, rows_tensors
from trainer.engine import build_engine
from trainer.gradients import Gradients, LossScale
from trainer.guard import Guard
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import MarginLoss
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.optimizers import make_optimizer
from trainer.training_spec import TrainingSpec, spec_seed


@dataclass
class State:
    """What changes while training."""

    engine: Any
    classifier: MarginLoss
    current: ShardedRows
    previous: ShardedRows | None
    embedder_optimizer: torch.optim.Optimizer
    row_optimizers: dict[str, RowOptimizer]
    """Of the blocks that are trained, by the block's name."""
    gradients: Gradients
    """On their way into the embedder."""
    guard: Guard
    shared: dict[str, torch.Tensor] = field(default_factory=dict)
    """Small tensors that are equal on every rank and change with the iterations."""
    iteration: int = 0
    origin: dict[str, Any] = field(default_factory=dict)
    """What must be the same for a checkpoint to be put back: dataset, seed, learning step."""

    def finite(self, ranks: Ranks) -> bool:
        """Whether every weight of the embedder and the rows is finite, on all ranks."""
        weights = [*self.engine.module.parameters(), *(r.weight for r in self.blocks().values())]
        fine = all(bool(torch.isfinite(weight).all()) for weight in weights)
        return not ranks.max(weights[0].new_tensor(float(not fine))).item()

    def blocks(self) -> dict[str, ShardedRows]:
        """The blocks of rows by name."""
        held = {"previous": self.previous, "current": self.current}
        return {name: rows for name, rows in held.items() if rows is not None}


def build_state(spec: TrainingSpec, ranks: Ranks, device: torch.device) -> State:
    """The embedder, rows and optimisers as they are before the first iteration."""
    seed = spec_seed(spec, "step")
    last = spec.benchmark.row_ends[spec.step]
    embedder = build_embedder(spec.embedder, seed)
    scratch, whole = spec.recipe.start == "scratch", spec.recipe.data == "all"
    old = 0 if spec.previous is None or (scratch and whole) else spec.previous.rows
    fresh = ShardedRows.new(old, last, spec.embedder.dimension, seed % 2**31, ranks)
    previous = None
    if spec.previous is not None and not scratch:
        embedder.load_state_dict(spec.previous.embedder().state_dict())
    if spec.previous is not None and old:
        previous = spec.previous.sharded_rows(ranks)
    if previous is not None and whole:
        order = torch.cat([previous.own_ids(), fresh.own_ids()]).argsort()
        weight = torch.cat([previous.weight.detach(), fresh.weight.detach()])[order]
        fresh, previous = ShardedRows(0, last, weight, ranks), None
    synchronise_batch_norm(embedder, ranks)
    embedder.to(device).train()
    fresh.to(device)
    trained = {"current": fresh}
    if previous is not None:
        previous.to(device)
        if spec.recipe.needs.trained_rows:
            trained["previous"] = previous
    scale = LossScale() if spec.training.precision == "fp16" else None
    gradients, guard = Gradients(embedder.parameters(), scale), Guard(spec.training.guard)
    shared = {**guard.tensors, **gradients.tensors}
    embedder_optimizer = make_optimizer(embedder.parameters(), spec.training)
    engine = build_engine(
        embedder, embedder_optimizer, spec.training.batch, ranks, spec.training.zero
    )
    row_optimizers = {name: RowOptimizer(rows, spec.training) for name, rows in trained.items()}
    classifier = MarginLoss(spec.classifier, seed % 2**31, device)
    if spec.previous is not None and spec.recipe.start == "previous":
        classifier.restore(spec.previous.running())
    origin = {
        "dataset": spec.dataset.fingerprint,
        "seed": spec.seed,
        "learning_step": spec.step,
    }
    if spec.phase:  # of main trainings none has the key: checkpoints of before stay theirs
        origin["phase"] = spec.phase
    return State(
        engine,
        classifier,
        fresh,
        previous,
        embedder_optimizer,
        row_optimizers,
        gradients,
        guard,
        shared,
        origin=origin,
    )


def save_state(spec: TrainingSpec, state: State, checkpoints: Checkpoints, ranks: Ranks) -> None:
    """Checkpoints the state before `state.iteration`: copied now, written in the background.

    Rows that are not trained stay out: the previous model has them.
    """
    blocks = {name: state.blocks()[name] for name in state.row_optimizers}
    files = {
        part_name(name, ranks): rows_tensors(rows, state.row_optimizers[name])
        for name, rows in blocks.items()
    }
    if ranks.rank == 0:
        files["classifier"] = state.classifier.running
        files["embedder"] = dict(state.engine.module.state_dict())
        files["shared"] = state.shared
    if ranks.rank == 0 or spec.training.zero:
        optimizer = optimizer_tensors(state.engine, state.embedder_optimizer)
        files[part_name("optimizer", ranks)] = optimizer
    card = {
        "samples": state.iteration * spec.training.batch,
        "zero": spec.training.zero,
        "blocks": {name: [rows.first, rows.last] for name, rows in blocks.items()},
        "origin": state.origin,
    }
    checkpoints.save(state.iteration, files, card)


def restore_state(state: State, folder: Folder, ranks: Ranks) -> None:
    """Puts a verified checkpoint back, saved at any world size and ZeRO stage.

    Raises InputError when it was saved by another phase.
    """
    card = folder.card("checkpoint")
    with folder.intact(CARD):
        found = card["origin"]
        for key in {**state.origin, **found}:
            saved, own = found.get(key, "none"), state.origin.get(key, "none")
            if saved != own:
                raise InputError(
                    f"{folder} was saved for {key} {saved}, this phase has {key} {own}: use "
                    "another --out or training.checkpoint_url"
                )
        state.iteration = int(card["iteration"])
    with folder.intact("embedder.safetensors"):
        state.engine.module.load_state_dict(folder.tensors("embedder"))
    with folder.intact("classifier.safetensors"):
        state.classifier.restore(folder.tensors("classifier"))
    pieces: dict[str, torch.Tensor] = {}
    for name, _, _ in parts(folder, "optimizer"):
        pieces |= folder.tensors(name)
    load_optimizer(state.engine, state.embedder_optimizer, pieces)
    for key, tensor in folder.tensors("shared").items():
        state.shared[key].copy_(tensor)
    for name, optimizer in state.row_optimizers.items():
        rows = state.blocks()[name]
        tensors = load_rows(folder, name, rows.first, rows.last, ranks)
        rows.weight.data.copy_(tensors["weight"])
        for key, held in optimizer.state.items():
            held.copy_(tensors[f"state.{key}"])
