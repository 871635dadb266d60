"""Terms and whole updates of the product, to hold against dense float64 ones written in a test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data_shards.orders.order import rank_slice
from data_shards.pipeline import Batch
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.engine import build_engine, ensure_process_group
from trainer.gradients import Gradients
from trainer.guard import Guard
from trainer.heads.collectives import Ranks, gather_embeddings
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows, own_ids
from trainer.methods.forward import Forward, OldClassifier, Teacher
from trainer.methods.recipe import Recipe
from trainer.methods.wants import Answers, Want
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.row_layout import rows_over
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import NoTeacher, OnlineTeacher

OLD, ROWS, BATCH, DIMENSION = 5, 8, 11, 4
Draws = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Found = tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]


def draws(seed: int = 0) -> Draws:
    """Embeddings, labels, all rows, the old model's embeddings and its rows, equal anywhere."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, ROWS, (BATCH,), generator=generator)
    assert 0 < (labels < OLD).sum() < BATCH
    shapes = (BATCH, DIMENSION), (ROWS, DIMENSION), (BATCH, DIMENSION), (OLD, DIMENSION)
    embeddings, rows, old_embeddings, old_rows = (draw(*shape) for shape in shapes)
    return embeddings, labels, rows, old_embeddings, old_rows


def on_rank(
    terms: dict[str, Any],
    settings: ClassifierSettings,
    given: Draws,
    loaded: dict[type[Want], Any] | None = None,
) -> dict[str, Found]:
    """Of each Term: its mean, the gradient of this rank's embeddings, and of its rows by id.

    `loaded` is what Terms want that is no answer of the old model."""
    ranks, out = Ranks.default(), {}
    embeddings, labels, weight, old_embeddings, old_rows = given
    slices = [rank_slice(len(labels), rank, ranks.world) for rank in range(ranks.world)]
    counts = [part.stop - part.start for part in slices]
    frozen = settings.directions(old_rows[own_ids(0, OLD, ranks)])
    for name, term in terms.items():
        rows = ShardedRows(0, ROWS, weight[own_ids(0, ROWS, ranks)].clone(), ranks)
        own = embeddings[slices[ranks.rank]].clone().requires_grad_()
        gathered = gather_embeddings(own, ranks, counts)
        forward = Forward(
            embeddings=gathered,
            labels=labels,
            rows=rows_over(Recipe(terms=(term,)), {"current": rows}, OLD),
            classifier=MarginLoss(settings, 0, own.device),
            teacher=Teacher(
                old_embeddings, rows=ShardedRows(0, OLD, frozen, ranks).requires_grad_(False)
            ),
            loaded=loaded or {},
        )
        numerator, denominator = term(forward)
        loss = numerator / denominator
        # a Term that has nothing to do with embeddings, or with rows, leaves them no gradient
        (loss + 0 * gathered.sum()).backward()
        gradient = torch.zeros_like(rows.weight)
        if rows.weight.grad is not None:
            gradient = rows.weight.grad.to_dense()
        by_id = dict(zip(rows.own_ids().tolist(), gradient, strict=True))
        # the engine averages over the ranks what the gathering multiplied by their number
        out[name] = loss.detach(), own.grad / ranks.world, by_id
    return out


def assert_equal(
    results: list[dict[str, Found]], name: str, given: Draws, dense: Callable[..., torch.Tensor]
) -> None:
    """The Term's loss and gradients from all ranks are those of `dense`, called with `given`."""
    embeddings, labels, rows, *old = (tensor.clone() for tensor in given)
    embeddings.requires_grad_(), rows.requires_grad_()
    loss = dense(embeddings, labels, rows, *old)
    wanted = torch.autograd.grad(
        loss, (embeddings, rows), allow_unused=True, materialize_grads=True
    )
    close = {"rtol": 1e-9, "atol": 1e-12}
    for result in results:
        torch.testing.assert_close(result[name][0], loss.detach(), **close)
    found = torch.cat([result[name][1] for result in results])
    torch.testing.assert_close(found, wanted[0], **close)
    by_id = {row: g for result in results for row, g in result[name][2].items()}
    torch.testing.assert_close(torch.stack([by_id[row] for row in range(ROWS)]), wanted[1], **close)


def assert_unequal(
    results: list[dict[str, Found]], name: str, given: Draws, dense: Callable[..., torch.Tensor]
) -> None:
    """`assert_equal` refuses the Term."""
    with pytest.raises(AssertionError):
        assert_equal(results, name, given, dense)


@dataclass(frozen=True)
class OverAll:
    """A Term over all rows that makes something of another one, or is it."""

    term: Any
    weight: float = 1.0
    over: str = "all"
    name: str = "changed"
    wants: tuple[()] = ()

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, Any]:
        """The other one's loss."""
        found: tuple[torch.Tensor, Any] = self.term(forward)
        return found


class Summed(OverAll):
    """Every rank's loss is added up, which is wrong."""

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, Any]:
        """As many times as there are ranks."""
        numerator, count = self.term(forward)
        return numerator * forward.rows["all"].ranks.world, count


# Whole updates

NETWORK = EmbedderSettings(width=2, dimension=DIMENSION)
RATE, MOMENTUM, DECAY, UPDATES = 0.05, 0.9, 1e-2, 3
Updated = tuple[list[float], dict[str, torch.Tensor], torch.Tensor]


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels of each update, of old and new identities."""
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randint(0, 256, (BATCH, 3, 16, 16), generator=generator, dtype=torch.uint8),
            torch.randint(0, ROWS, (BATCH,), generator=generator),
        )
        for _ in range(UPDATES)
    ]


def networks(settings: EmbedderSettings) -> tuple[nn.Module, nn.Module]:
    """One to train and an old one, with other weights."""
    return build_embedder(settings, seed=1).train(), build_embedder(settings, seed=2).eval()


def rows_of(old: bool) -> torch.Tensor:
    """All rows before the first update, or the old model's."""
    return ShardedRows.new(0, OLD if old else ROWS, DIMENSION, 3 + old, Ranks()).weight.detach()


def updated(
    recipe: Recipe,
    settings: ClassifierSettings,
    network: EmbedderSettings,
    loaded: dict[type[Want], Any] | None = None,
) -> Updated:
    """Losses, embedder and rows of some updates by the product, over one block of rows."""
    torch.set_num_threads(1)
    ensure_process_group()
    training = TrainingSettings(
        batch=BATCH, learning_rate=RATE, momentum=MOMENTUM, weight_decay=DECAY
    )
    embedder, old = networks(network)
    frozen = ShardedRows(0, OLD, settings.directions(rows_of(True)), Ranks()).requires_grad_(False)
    wanted = recipe.want(Answers)
    teacher = (
        NoTeacher()
        if wanted is None
        else OnlineTeacher(
            old, OldClassifier(frozen, MarginLoss(settings, 0, torch.device("cpu")), OLD), wanted
        )
    )
    rows = ShardedRows(0, ROWS, rows_of(False).clone(), Ranks())
    optimizer = make_optimizer(embedder.parameters(), training)
    state = State(
        engine=build_engine(embedder, optimizer, BATCH, Ranks()),
        classifier=MarginLoss(settings, 0, torch.device("cpu")),
        blocks={"current": rows},
        old=OLD,
        embedder_optimizer=optimizer,
        row_optimizers={"current": RowOptimizer(rows, training)},
        gradients=Gradients(embedder.parameters(), None),
        guard=Guard(training.guard),
    )
    step = Stepper(training, recipe, state, teacher, Ranks(), loaded=loaded)
    numbers, plain = np.arange(BATCH), np.zeros(BATCH, dtype=bool)
    losses = [float(step(Batch(*own, numbers, plain))["loss"]) for own in batches()]
    assert step.fault is None
    return losses, dict(embedder.state_dict()), rows.weight.detach()


def dense_updates(loss_of: Callable[..., torch.Tensor], network: EmbedderSettings) -> Updated:
    """The same in float64, by plain gradient descent with momentum.

    `loss_of` is given the network's output, labels, all rows, the old network's output and rows.
    """
    embedder, old = (own.double() for own in networks(network))
    rows, old_rows = rows_of(False).double().requires_grad_(), rows_of(True).double()
    weights: Sequence[torch.Tensor] = [*embedder.parameters(), rows]
    velocities, losses = [torch.zeros_like(w) for w in weights], []
    for images, labels in batches():
        with torch.no_grad():
            said = old(images)
        loss = loss_of(embedder(images), labels, rows, said, old_rows)
        gradients = torch.autograd.grad(loss, weights)
        for weight, velocity, gradient in zip(weights, velocities, gradients, strict=True):
            velocity.mul_(MOMENTUM).add_(gradient + DECAY * weight.detach())
            weight.data.sub_(RATE * velocity)
        losses.append(float(loss.detach()))
    return losses, dict(embedder.state_dict()), rows.detach()


def assert_updated_alike(found: Updated, wanted: Updated) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4, check_dtype=False)
