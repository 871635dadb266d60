"""What changes while a phase trains: built, saved and put back."""

from dataclasses import dataclass, field
from typing import Any

import torch

from data_shards.settings import InputError
from trainer.backbones import build_embedder
from trainer.batch_norm import hold_batch_norm, synchronise_batch_norm
from trainer.checkpoint import Checkpoints, Folder
from trainer.checkpoint.format import CARD
from trainer.checkpoint.optimizer import load_optimizer, optimizer_tensors
from trainer.checkpoint.rows import load_rows, part_name, parts, rows_tensors
from trainer.class_means import read_class_means
from trainer.engine import build_engine
from trainer.gradients import Gradients, LossScale
from trainer.guard import Guard
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import MarginLoss
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows, own_ids
from trainer.imprinting import Imprinted
from trainer.optimizers import make_optimizer
from trainer.row_layout import RowBlock, row_blocks
from trainer.training_spec import TrainingSpec, spec_seed
from trainer.weights import load_weights, read_state_dict


@dataclass(kw_only=True)
class State:
    """What changes while training."""

    engine: Any
    classifier: MarginLoss
    blocks: dict[str, ShardedRows]
    """The rows by the names of `row_blocks`, lowest ones first."""
    old: int
    """How many rows are of identities from before the step."""
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
        weights = [*self.engine.module.parameters(), *(r.weight for r in self.blocks.values())]
        fine = all(bool(torch.isfinite(weight).all()) for weight in weights)
        return not ranks.max(weights[0].new_tensor(float(not fine))).item()


def build_state(spec: TrainingSpec, ranks: Ranks, device: torch.device) -> State:
    """The embedder, rows and optimisers as they are before the first iteration."""
    seed = spec_seed(spec, "step")
    embedder = build_embedder(spec.embedder, seed)
    classifier = MarginLoss(spec.classifier, seed % 2**31, device)
    begun = spec.begins
    if begun is None and spec.recipe.start.embedder == "previous":
        begun = spec.extractor or spec.previous
    if begun is None and spec.embedder.convolutions != "trained":
        raise InputError(
            f"convolutions = {spec.embedder.convolutions} would keep random weights: it is for "
            "steps that begin with the model before, by a method's weight_transfer"
        )
    if begun is None and spec.start is not None:
        load_weights(embedder, spec.embedder, read_state_dict(spec.start), str(spec.start))
    if begun is not None:
        embedder.load_state_dict(begun.embedder().state_dict())
        classifier.restore(begun.running())
    synchronise_batch_norm(embedder, ranks)
    embedder.to(device).train()
    if spec.recipe.start.batch_norm == "held":
        hold_batch_norm(embedder)
    # of the model and not of the benchmark: one adopted without its classifier has no rows
    old = spec.previous.rows if spec.previous is not None else 0
    layout = row_blocks(spec.recipe, old, spec.benchmark.row_ends[spec.step])
    blocks = {
        name: build_rows(block, spec, seed % 2**31, ranks).to(device)
        for name, block in layout.items()
    }
    scale = LossScale() if spec.training.precision == "fp16" else None
    gradients, guard = Gradients(embedder.parameters(), scale), Guard(spec.training.guard)
    embedder_optimizer = make_optimizer(embedder.parameters(), spec.training)
    # under ZeRO the engine copies the parameters, so they are final by now
    engine = build_engine(
        embedder=embedder,
        optimizer=embedder_optimizer,
        batch=spec.training.batch,
        ranks=ranks,
        zero=spec.training.zero,
    )
    origin = {
        "dataset": spec.dataset.fingerprint,
        "seed": spec.seed,
        "learning_step": spec.step,
    }
    if spec.phase:  # of main trainings none has the key: checkpoints of before stay theirs
        origin["phase"] = spec.phase
    return State(
        engine=engine,
        classifier=classifier,
        blocks=blocks,
        old=old,
        embedder_optimizer=embedder_optimizer,
        row_optimizers={
            name: RowOptimizer(blocks[name], spec.training, block.held)
            for name, block in layout.items()
            if block.trained
        },
        gradients=gradients,
        guard=guard,
        shared={**guard.tensors, **gradients.tensors},
        origin=origin,
    )


def build_rows(block: RowBlock, spec: TrainingSpec, seed: int, ranks: Ranks) -> ShardedRows:
    """This rank's rows of a block, on the CPU: those that are kept, then new ones."""
    first, last = block.rows.start, block.rows.stop
    if spec.begins is not None:
        own = spec.begins.sharded_rows(ranks).part(first, last).weight.detach().clone()
        return ShardedRows(first, last, own, ranks).requires_grad_(block.trained)
    weights = []
    if first < block.kept:
        assert spec.previous is not None
        weights.append(spec.previous.sharded_rows(ranks).weight.detach())
        first = block.kept
    if first < last and spec.recipe.start.new_rows == "imprinted":
        assert spec.previous is not None
        made = read_class_means(spec.prepared[Imprinted], spec.previous.fingerprint)
        weights.append(made[own_ids(first, last, ranks) - spec.previous.rows])
    elif first < last:
        fresh = ShardedRows.new(
            first=first, last=last, dimension=spec.embedder.dimension, seed=seed, ranks=ranks
        )
        weights.append(fresh.weight.detach())
    # kept rows have lower ids, so that one behind the other they ascend on every rank
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    rows = ShardedRows(block.rows.start, last, weight, ranks)
    return rows.requires_grad_(block.trained)


def save_state(spec: TrainingSpec, state: State, checkpoints: Checkpoints, ranks: Ranks) -> None:
    """Checkpoints the state before `state.iteration`: copied now, written in the background.

    Rows that are not trained stay out: the previous model has them.
    """
    blocks = {name: state.blocks[name] for name in state.row_optimizers}
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
        rows = state.blocks[name]
        tensors = load_rows(
            folder=folder, block=name, first=rows.first, last=rows.last, ranks=ranks
        )
        rows.weight.data.copy_(tensors["weight"])
        for key, held in optimizer.state.items():
            held.copy_(tensors[f"state.{key}"])
