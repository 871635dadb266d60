"""What one iteration takes on a rank: memory, work and communication, found by a dry run.

Sizes are of the fullest rank: the one with the most images, and the one with the most rows.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from data_shards.orders.order import rank_slice
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.batch_norm import synchronise_batch_norm
from trainer.dry_forward import (
    asked_expert,
    asked_teacher,
    at_entrance,
    entered,
    joined,
    shapes_of_wants,
    split,
)
from trainer.dry_run import Collective, DryRun, DryRunRanks, Operation
from trainer.entrance import Entrance
from trainer.guard import Guard
from trainer.heads.collectives import Ranks, gather_embeddings
from trainer.heads.cross_entropy import Update
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss, Part
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows, own_ids
from trainer.methods.entering import Entering
from trainer.methods.forward import Forward, OldClassifier
from trainer.methods.recipe import Recipe
from trainer.methods.wants import Answers, ClassMeans, FrozenRows, Want
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.row_layout import row_blocks, rows_over, updates_in_backward

Calls = dict[str, list[Collective]]
"""The collectives of an iteration by what they are for."""


@dataclass(frozen=True)
class EmbedderFootprint:
    """The embedder's part of an iteration. Sizes in bytes."""

    parameters: int
    """With the running statistics."""
    gradients: int
    optimizer: int
    """Under ZeRO 1 and 2 a rank's share, and a copy of the parameters that it belongs to."""
    saved_optimizer: int
    """What checkpoints keep of it, of all ranks."""
    activations: int
    """Kept from the forward to the backward pass."""
    peak: int
    """The most that both passes hold beyond parameters: activations, gradients, temporaries."""
    operations: list[Operation]
    calls: Calls


@dataclass(frozen=True)
class HeadFootprint:
    """The part of an iteration from embeddings to row gradients. Sizes in bytes."""

    rows: int
    loaded: int
    """What earlier phases prepared for Terms, such as an importance of each parameter."""
    prepared: int
    """The same on disk, with what is not loaded."""
    frozen: int
    """The previous model, as far as the teacher keeps it on the device."""
    optimizer: int
    gradients: int
    """Those that wait for the optimiser; blocks that are updated at once leave none."""
    peak: int
    """The most that losses, backward pass and update hold beyond rows: logits, row gradients."""
    operations: list[Operation]
    calls: Calls


def images_by_rank(batch: int, world: int) -> list[int]:
    """The images of a global batch that each rank takes."""
    parts = [rank_slice(batch, rank, world) for rank in range(world)]
    return [part.stop - part.start for part in parts]


def _parts(count: int, training: TrainingSettings) -> list[slice]:
    """The parts of a rank's `count` images that it passes through one after the other."""
    number = training.accumulate
    return [rank_slice(count, part, number) for part in range(number)]


@cache
def rows_by_rank(first: int, last: int, world: int) -> tuple[int, ...]:
    """The rows first <= r < last that each rank owns."""
    return tuple(len(own_ids(first, last, Ranks(rank, world))) for rank in range(world))


@cache
def embedder_footprint(
    settings: EmbedderSettings,
    size: tuple[int, int],
    training: TrainingSettings,
    world: int,
    entering: Entering | None = None,
) -> EmbedderFootprint:
    """Runs the embedder dry on images of `size` (height, width), and on what enters beside them."""
    counts = images_by_rank(training.batch, world)
    ranks = DryRunRanks(counts.index(max(counts)), world)
    with DryRun() as dry_run:
        network = build_embedder(settings).train()
        synchronise_batch_norm(network, ranks)
        optimizer = make_optimizer(network.parameters(), training)
        parts = [part.stop - part.start for part in _parts(max(counts), training)]
        images = _images(max(parts), size)
        before, activations, peak = dry_run.mark(), 0, 0
        operations: list[Operation] = []
        # all but the first part find gradients to add to; parts that are alike are run once
        alike: dict[tuple[int, int, bool], list[Operation]] = {}
        statistics: list[Collective] = []
        entrance = None if entering is None else Entrance(network, entering.place, size)
        drawn = [max(by_rank) for by_rank in entered(entering, training, world)]
        dry_run.mark()
        for number, (count, more) in enumerate(zip(parts, drawn, strict=True)):
            key = count, more, number > 0
            if key not in alike:
                held = dry_run.mark()
                half = torch.autocast("cpu", torch.bfloat16, training.precision == "bf16")
                with half, joined(entrance, more):
                    embeddings = network(images[:count])
                activations = max(activations, dry_run.held - held)
                embeddings.float().backward(torch.empty(embeddings.shape))
                peak = max(peak, dry_run.peak - before)
                alike[key], made = dry_run.operations, _taken(ranks)
                del embeddings
            operations += alike[key]
            statistics += made  # as many and as long whatever the part
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        dry_run.mark()
        optimizer.step()
        operations += dry_run.operations
        states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
        state, trained = _bytes(*states), _bytes(*gradients)
        shared = math.ceil(trained / world), math.ceil(state / world)
        calls = {"batch normalisation": statistics}
        if world > 1:
            calls["guard"] = [Collective("all-reduce", 3 * 8)] * len(parts)
            calls["embedder gradients"] = [Collective("all-reduce", trained)]
            if training.zero:
                calls["embedder weights"] = [Collective("all-gather", shared[0])]
        return EmbedderFootprint(
            parameters=_bytes(*network.state_dict().values()),
            gradients=trained,
            optimizer=sum(shared) if training.zero else state,
            saved_optimizer=state,
            activations=activations,
            peak=peak,
            operations=operations,
            calls=calls,
        )


def online_teacher_operations(
    settings: EmbedderSettings,
    size: tuple[int, int],
    training: TrainingSettings,
    world: int,
) -> list[Operation]:
    """The forward passes of a frozen embedder beside training, one a part of the batch."""
    parts = _parts(max(images_by_rank(training.batch, world)), training)
    each = (forward_operations(settings, size, part.stop - part.start) for part in parts)
    return [operation for operations in each for operation in operations]


@cache
def forward_operations(
    settings: EmbedderSettings, size: tuple[int, int], count: int
) -> list[Operation]:
    """A forward pass of `count` images through a finished network."""
    with DryRun() as dry_run, torch.no_grad():
        network = build_embedder(settings).eval()
        images = _images(count, size)
        dry_run.mark()
        network(images)
        return dry_run.operations


@cache
def backward_operations(settings: EmbedderSettings, size: tuple[int, int]) -> list[Operation]:
    """The backward pass of one image through a finished network, to the gradients of weights."""
    with DryRun() as dry_run:
        network = build_embedder(settings).eval()
        embeddings = network(_images(1, size))
        dry_run.mark()
        embeddings.backward(torch.empty(embeddings.shape))
        return dry_run.operations


def head_footprint(
    recipe: Recipe,
    old: int,
    last: int,
    dimension: int,
    old_dimension: int,
    settings: ClassifierSettings,
    training: TrainingSettings,
    online: bool,
    world: int,
    embedder: EmbedderSettings | None = None,
    size: tuple[int, int] | None = None,
) -> HeadFootprint:
    """Runs the Terms dry of `recipe` (as it applies at the step) and their backward pass.

    Terms on the embedder's parameters, or of what enters it, need the `embedder`, and these the
    images' `size` (height, width).
    Old models, of embeddings of `old_dimension`, share one frozen copy of their rows. By the plain
    PyTorch path: kernels of our own are nothing that a dry_run could follow.
    """
    blocks = row_blocks(recipe, old, last)
    owned = {n: rows_by_rank(b.rows.start, b.rows.stop, world) for n, b in blocks.items()}
    held = [sum(own) for own in zip(*owned.values(), strict=True)]
    ranks = DryRunRanks(held.index(max(held)), world)
    counts = images_by_rank(training.batch, world)
    shapes = shapes_of_wants(recipe, dimension, embedder, size)
    beside = sum(want.beside(old, shapes[type(want)]) for want in recipe.wants)
    with DryRun() as dry_run:
        lasting = _lasting(
            dry_run=dry_run,
            recipe=recipe,
            rows={
                name: _rows(block.rows, dimension, ranks).requires_grad_(block.trained)
                for name, block in blocks.items()
            },
            training=training,
            embedder=embedder,
            known=old,
            shapes=shapes,
        )
        known = range(last if recipe.want(ClassMeans) is not None else old)
        classifies = recipe.want(Answers) or recipe.want(FrozenRows)
        frozen = None
        if classifies:
            frozen = _rows(known, old_dimension, ranks).requires_grad_(False)
        classifier = MarginLoss(settings, 0, torch.device("cpu"))
        parts = [*zip(*(_parts(count, training) for count in counts), strict=True)]
        taken = [[part.stop - part.start for part in slices] for slices in parts]
        entering, drawn = recipe.enters, entered(recipe.enters, training, world)
        both = [[*map(sum, zip(*pair, strict=True))] for pair in zip(taken, drawn, strict=True)]
        given = [torch.empty((n[ranks.rank], dimension), requires_grad=True) for n in both]
        before = dry_run.mark()
        anchor = None if frozen is None else OldClassifier(frozen, classifier, old)
        every = ranks.gather(torch.empty(counts[ranks.rank], dtype=torch.int64), counts)
        gathering, asked, losses = _taken(ranks), list[Collective](), list[Collective]()
        chosen = settings.sampled + training.batch / world / owned["current"][ranks.rank]
        dry_run.hits = {1: min(1.0, chosen), 2: 1 / world}
        dry_run.values = rows_by_rank(0, old, world)[ranks.rank]
        fused = updates_in_backward(recipe, old) and training.accumulate == 1
        for number, (embeddings, numbers) in enumerate(zip(given, taken, strict=True)):
            part, of_drawn = (number if training.accumulate > 1 else None), None
            teacher = asked_teacher(recipe, anchor, ranks, numbers, online=online)
            expert = asked_expert(recipe, dimension, ranks, numbers)
            asked += _taken(ranks)
            gathered = gather_embeddings(embeddings, ranks, both[number])
            gathering += _taken(ranks)
            if entering is not None:
                total = sum(map(sum, drawn))
                gathered, of_drawn = split(gathered, numbers, drawn[number], part, total)
            forward = Forward(
                embeddings=gathered,
                labels=torch.empty(sum(numbers), dtype=torch.int64),
                rows=rows_over(recipe, lasting.rows, old),
                classifier=classifier,
                teacher=teacher,
                loaded=lasting.loaded,
                parameters=lasting.parameters,
                update=Update(lasting.optimizers["current"], 0.1) if fused else None,
                anchor=anchor,
                part=None if part is None else Part(part, every),
                drawn=of_drawn,
                expert=expert,
                within=at_entrance(recipe, shapes, ranks, numbers),
            )
            _loss(recipe, forward).backward()
            losses += _taken(ranks)
            del forward, gathered, teacher, expert, of_drawn
        weights = [rows.weight for rows in lasting.rows.values()]
        gradients = [_bytes(weight.grad) for weight in weights if weight.grad is not None]
        for optimizer in lasting.optimizers.values():
            optimizer.step(0.1)
        return HeadFootprint(
            rows=_bytes(*weights),
            loaded=lasting.loaded_bytes,
            prepared=lasting.loaded_bytes + beside,
            frozen=_bytes(frozen.weight) if frozen is not None else 0,
            optimizer=lasting.optimizer_bytes,
            gradients=sum(gradients),
            peak=dry_run.peak - before,
            operations=dry_run.operations,
            calls={
                "embeddings and labels": gathering,
                "teacher": asked,
                "losses": losses + _taken(ranks),
            },
        )


@dataclass(frozen=True)
class _Lasting:
    """What a rank holds from one iteration to the next, but for old models."""

    rows: dict[str, ShardedRows]
    optimizers: dict[str, RowOptimizer]
    optimizer_bytes: int
    parameters: dict[str, torch.nn.Parameter]
    """The embedder's, for Terms on them."""
    loaded: dict[type[Want], Any]
    loaded_bytes: int


def _lasting(
    dry_run: DryRun,
    recipe: Recipe,
    rows: dict[str, ShardedRows],
    training: TrainingSettings,
    embedder: EmbedderSettings | None,
    known: int,
    shapes: dict[type[Want], tuple[int, ...]],
) -> _Lasting:
    """Makes it dry for the blocks of `rows`; `known` is how many old identities there are, `shapes`
    are those of `Want.imagined`."""
    before = dry_run.mark()
    trained = {name: own for name, own in rows.items() if own.weight.requires_grad}
    optimizers = {name: RowOptimizer(own, training) for name, own in trained.items()}
    optimizer_bytes = dry_run.held - before
    network = build_embedder(embedder) if embedder is not None else torch.nn.Module()
    parameters = dict(network.named_parameters())
    before = dry_run.mark()
    imagined = {
        type(want): want.imagined(parameters, known, shapes[type(want)]) for want in recipe.wants
    }
    loaded = {kind: made for kind, made in imagined.items() if made is not None}
    return _Lasting(
        rows=rows,
        optimizers=optimizers,
        optimizer_bytes=optimizer_bytes,
        parameters=parameters,
        loaded=loaded,
        loaded_bytes=dry_run.held - before,
    )


def saved_bytes(
    recipe: Recipe, old: int, last: int, dimension: int, training: TrainingSettings
) -> tuple[int, int]:
    """Of all ranks' rows: as a model keeps them, and as a checkpoint does.

    A checkpoint has the trained rows only, with their optimiser's state, and what the guard knows.
    """
    model, checkpoint = 0, _bytes(*Guard(training.guard).tensors.values())
    with DryRun():
        for block in row_blocks(recipe, old, last).values():
            rows = _rows(block.rows, dimension, Ranks())
            size = _bytes(rows.weight, rows.own_ids())
            model += size
            if block.trained:
                checkpoint += size + _bytes(*RowOptimizer(rows, training).state.values())
    return model, checkpoint


def _loss(recipe: Recipe, forward: Forward) -> torch.Tensor:
    total = forward.embeddings.new_zeros(())
    for term in recipe.terms:
        numerator, denominator = term(forward)
        total = total + term.weight * (numerator / denominator)
    return total


def _taken(ranks: DryRunRanks) -> list[Collective]:
    """The calls since the last look."""
    calls = list(ranks.calls)
    ranks.calls.clear()
    return calls


def _rows(block: range, dimension: int, ranks: Ranks) -> ShardedRows:
    own = len(own_ids(block.start, block.stop, ranks))
    return ShardedRows(block.start, block.stop, torch.empty((own, dimension)), ranks)


def _images(count: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.empty((count, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


def _bytes(*tensors: torch.Tensor) -> int:
    dense = [
        part for t in tensors for part in ((t._indices(), t._values()) if t.is_sparse else (t,))
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in dense)
