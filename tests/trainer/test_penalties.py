"""A penalty on the embedder's parameters counts once an update, in any precision and on any rank.

Closed form: half of the squared distance to some values has the distance as its gradient.
"""

from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pytest
import torch

from data_shards.orders.order import rank_slice
from data_shards.pipeline import Batch
from tests.ranks import on_ranks
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.batch_norm import synchronise_batch_norm
from trainer.engine import build_engine
from trainer.gradients import Gradients, LossScale
from trainer.guard import Guard, GuardSettings
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.methods.recipe import Recipe
from trainer.methods.terms import Classify
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import NoTeacher

BATCH, ROWS, RATE, WEIGHT = 11, 7, 0.5, 0.25
PRECISIONS = ("fp32", "bf16", "fp16")
CASES = list(product(PRECISIONS, (1, 3), (0, 1)))
PAIRS = [(p, a, z) for p, a, z in CASES if (a == 3) == ((z == 1) != (p == "bf16"))]
"""Every two of a case's settings together, in half as many cases: for several ranks."""


@dataclass(frozen=True)
class Pull:
    """0.5 sum (p - goal)^2."""

    goals: dict = field(compare=False)
    name: str = "pull"
    weight: float = WEIGHT
    over: None = None
    wants: tuple = ()

    def at(self, old_rows):
        return self

    def __call__(self, forward):
        assert forward.parameters.keys() == self.goals.keys()
        squares = [(p - self.goals[n]).square().sum() for n, p in forward.parameters.items()]
        return forward.once(0.5 * sum(squares))


@dataclass(frozen=True)
class Told:
    """The next of some values."""

    values: list = field(compare=False)
    name: str = "told"
    weight: float = 1.0
    over: None = None
    wants: tuple = ()

    def at(self, old_rows):
        return self

    def __call__(self, forward):
        return forward.once(
            0.0 * sum(p.sum() for p in forward.parameters.values()) + self.values.pop(0)
        )


def updated(terms, precision, accumulate, zero, loaded=None):
    """The parameters before and after one update, and the mean of each Term."""
    usual = {"accumulate": accumulate, "zero": zero, "precision": precision}
    step, embedder, batch = stepper(terms, loaded, **usual)
    before = {n: p.detach().clone() for n, p in embedder.named_parameters()}
    losses = step(batch)
    while step.fault == "overflow":  # of fp16, which halves the loss scale and leaves the rest
        losses = step(batch)
    assert step.fault is None
    return before, {n: p.detach().clone() for n, p in embedder.named_parameters()}, losses


def stepper(terms, loaded=None, **settings):
    """What makes updates by these Terms, of an embedder, with a batch."""
    ranks = Ranks.default()
    usual = {"learning_rate": RATE, "warmup": 0, "momentum": 0, "weight_decay": 0}
    training = TrainingSettings(batch=BATCH, **usual, **settings)
    zero, precision = training.zero, training.precision
    embedder = build_embedder(EmbedderSettings(width=2, dimension=4), seed=1).train()
    synchronise_batch_norm(embedder, ranks)
    gradients = Gradients(embedder.parameters(), LossScale() if precision == "fp16" else None)
    optimizer = make_optimizer(embedder.parameters(), training)
    rows = ShardedRows.new(0, ROWS, 4, 0, ranks)
    state = State(
        engine=build_engine(embedder, optimizer, BATCH, ranks, zero),
        classifier=MarginLoss(ClassifierSettings(), 0, torch.device("cpu")),
        blocks={"current": rows},
        old=0,
        embedder_optimizer=optimizer,
        row_optimizers={"current": RowOptimizer(rows, training)},
        gradients=gradients,
        guard=Guard(training.guard),
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, ROWS, (BATCH,), generator=generator)
    own = rank_slice(BATCH, ranks.rank, ranks.world)
    count = own.stop - own.start
    batch = Batch(images[own], labels[own], np.arange(count), np.zeros(count, dtype=bool))
    step = Stepper(training, Recipe(terms=terms), state, NoTeacher(), ranks, loaded=loaded)
    return step, embedder, batch


def every_case(cases):
    torch.manual_seed(0)
    network = build_embedder(EmbedderSettings(width=2, dimension=4), seed=2)
    goals = {n: torch.randn_like(p) for n, p in network.named_parameters()}
    return goals, {
        case: [
            updated(t, *case) for t in ((Pull(goals),), (Classify(),), (Classify(), Pull(goals)))
        ]
        for case in cases
    }


@pytest.mark.parametrize("world", [1, 2])
def test_a_penalty_on_parameters_has_its_closed_form_gradient(world, tmp_path):
    cases = CASES if world == 1 else PAIRS
    for goals, found in on_ranks(world, every_case, cases, folder=tmp_path):
        for case, (alone, without, beside) in found.items():
            penalty = 0.0
            for name, goal in goals.items():
                before = alone[0][name]
                penalty += 0.5 * float((before - goal).double().square().sum())
                pulled = before - RATE * WEIGHT * (before - goal)

                def close(a, b, case=case, name=name):
                    torch.testing.assert_close(
                        a, b, rtol=1e-4, atol=1e-5, msg=lambda m: f"{case} {name}: {m}"
                    )

                close(alone[1][name], pulled)
                # beside another loss, their gradients add up
                close(beside[1][name] - without[1][name], pulled - before)
            assert float(alone[2]["pull"]) == pytest.approx(penalty, rel=1e-5)
            assert float(beside[2]["loss"]) == pytest.approx(
                float(beside[2]["classify"]) + WEIGHT * penalty, rel=1e-5
            )


MILESTONE, JUMP, STEADY = 9, 18, 1e6


def faults():
    """Of each iteration: losses are a million times larger from a milestone on, and once more in
    one iteration long after it."""
    values = [1.0] * MILESTONE + [STEADY] * 9 + [STEADY**2, STEADY]
    guard = GuardSettings(window=8, spike=10.0)
    step, _, batch = stepper((Told(values),), milestones=(MILESTONE,), guard=guard)
    found = []
    while values:
        step(batch)
        found.append(step.fault)
    return found


def test_a_penalty_that_grows_where_the_rate_falls_is_no_spike(tmp_path):
    """As EWC's and MAS' does, which is cut to what the learning rate can stand."""
    (found,) = on_ranks(1, faults, folder=tmp_path)
    assert [number for number, fault in enumerate(found) if fault] == [JUMP]
    assert found[JUMP] == "spike"
