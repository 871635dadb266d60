"""Drawn inputs that go through the network beside images: against a loop, and over ranks."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_shards.orders.order import rank_slice
from data_shards.pipeline import Batch
from data_shards.settings import InputError
from tests.ranks import on_ranks
from tests.trainer.against_dense import BATCH, DIMENSION, OLD, ROWS, batches
from tests.trainer.loops import LINEAR
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.batch_norm import hold_batch_norm, synchronise_batch_norm
from trainer.blocks import blocks, watched
from trainer.engine import build_engine, ensure_process_group
from trainer.entrance import Entrance
from trainer.gradients import Gradients
from trainer.guard import Guard
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import MarginLoss
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.methods.recipe import Recipe
from trainer.methods.replay import DistillWithin, Generator, Grown, ReplayInputs
from trainer.methods.terms import Classify
from trainer.methods.wants import AnswersWithin
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.replay.gaussian import Gaussians
from trainer.replay.source import replayed
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import NoTeacher

CPU = torch.device("cpu")
NETWORK = EmbedderSettings(width=2, depth=1, dimension=DIMENSION)
SHAPES = {
    "image": (3, 16, 16),
    "block 1": (4, 8, 8),
    "block 2": (8, 4, 4),
    "block 3": (16, 2, 2),
}
RATE, DRAWN = 0.05, 7


@dataclass(frozen=True)
class Waves:
    """Draws inputs of a shape from -1 to 1, by a linear map of its own."""

    shape: tuple[int, ...]
    rows: int = OLD
    noise: int = 3

    def features(self, classes, noise):
        size = int(np.prod(self.shape))
        turn = torch.linspace(-2, 2, 3 * size).view(3, size).sin()
        return (classes[:, None] / OLD + noise @ turn).tanh().view(-1, *self.shape)


def recipe(place, count=DRAWN, kept=False):
    """Not all of the weight on what is drawn; `kept`: features are distilled there, too."""
    distill = (DistillWithin(0.4, place),) if kept else ()
    replay = ReplayInputs(0.7, Gaussians("shared"), place, count)
    return Recipe(terms=(Classify(over="all"), replay, *distill))


def stepper(by, source, *, held=False, accumulate=1):
    """The product's on this process' rank, with its state."""
    torch.set_num_threads(1)
    ensure_process_group()
    ranks = Ranks.default()
    training = TrainingSettings(
        batch=BATCH, learning_rate=RATE, momentum=0, weight_decay=0, accumulate=accumulate
    )
    embedder = build_embedder(NETWORK, seed=1)
    synchronise_batch_norm(embedder, ranks)
    embedder.train()
    if held:
        hold_batch_norm(embedder)
    rows = ShardedRows.new(0, ROWS, DIMENSION, 3, ranks)
    optimizer = make_optimizer(embedder.parameters(), training)
    state = State(
        engine=build_engine(embedder, optimizer, BATCH, ranks),
        classifier=MarginLoss(LINEAR, 0, CPU),
        blocks={"current": rows},
        old=OLD,
        embedder_optimizer=optimizer,
        row_optimizers={"current": RowOptimizer(rows, training)},
        gradients=Gradients(embedder.parameters(), None),
        guard=Guard(training.guard),
    )
    loaded = {Generator: source, AnswersWithin: build_embedder(NETWORK, seed=2).eval()}
    return Stepper(training, by, state, NoTeacher(), ranks, loaded=loaded), state


def run(step):
    """The mean losses of two updates."""
    ranks = Ranks.default()
    own = rank_slice(BATCH, ranks.rank, ranks.world)
    numbers, plain = np.arange(BATCH)[own], np.zeros(BATCH, dtype=bool)[own]
    found = [step(Batch(x[own], labels[own], numbers, plain)) for x, labels in batches()[:2]]
    assert step.fault is None
    return [{name: float(value) for name, value in losses.items()} for losses in found]


def updated(place, held, accumulate=1, count=DRAWN, kept=False):
    """Mean losses, network and rows after two updates by the product."""
    source = Waves(SHAPES[place])
    by = recipe(place, count, kept)
    step, state = stepper(by, source, held=held, accumulate=accumulate)
    losses, rows = run(step), state.blocks["current"]
    by_id = dict(zip(rows.own_ids().tolist(), rows.weight.detach(), strict=True))
    return losses, dict(state.engine.module.state_dict()), by_id


def through(network, images, drawn, place):
    """Layer by layer: a strided convolution, batch normalisation, ReLU, three times. Returns
    what images are at the place, too."""
    x, layers = (images.double() - 127.5) / 127.5, [*network.trunk.children()]
    own = x
    if place == "image":
        x = torch.cat([x, drawn])
    for number, layer in enumerate(layers[:-1], 1):
        convolution, norm, _ = layer.children()
        x = F.conv2d(x, convolution.weight, None, 2, 1)
        x = norm(x).clamp_min(0)
        if place == f"block {number}":
            own, x = x, torch.cat([x, drawn])
    return network.norm(layers[-1](x) @ network.project.weight.T), own


def reference(place, held, count=DRAWN, kept=False):
    """The same in float64, by a loop."""
    old = build_embedder(NETWORK, seed=2).double().eval()
    network = build_embedder(NETWORK, seed=1).double().train(not held)
    rows = ShardedRows.new(0, ROWS, DIMENSION, 3, Ranks()).weight.detach().double()
    rows.requires_grad_()
    weights, found = [*network.parameters(), rows], []
    for iteration, (images, labels) in enumerate(batches()[:2]):
        drawn, classes = replayed(Waves(SHAPES[place]), count or BATCH, 0, iteration, CPU)
        made, now = through(network, images, drawn.double(), place)
        assert len(made) == BATCH + (count or BATCH)
        logged = torch.log_softmax(made @ rows.T, dim=1)
        known = torch.cat([labels, classes])
        losses = torch.stack([-row[label] for row, label in zip(logged, known, strict=True)])
        means = losses[:BATCH].mean(), losses[BATCH:].mean()
        loss = means[0] + 0.7 * means[1]
        if kept:
            with torch.no_grad():
                _, before = through(old, images, drawn.double(), place)
            apart = [((a - b) ** 2).sum().sqrt() for a, b in zip(now, before, strict=True)]
            means = *means, sum(apart) / BATCH
            loss = loss + 0.4 * means[2]
        gradients = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= RATE * gradient
        names = ["classify", "replay", *["distillfeatures"] * kept, "loss"]
        named = zip(names, (*means, loss), strict=True)
        found.append({name: float(value.detach()) for name, value in named})
    return found, dict(network.state_dict()), rows.detach()


def assert_alike(results, wanted):
    close = {"rtol": 1e-3, "atol": 2e-5, "check_dtype": False}
    losses, network, rows = wanted
    for found in results:
        torch.testing.assert_close(found[0], losses, rtol=1e-4, atol=1e-5)
        assert found[1].keys() == network.keys()
        for name, own in network.items():
            if "num_batches" not in name:
                torch.testing.assert_close(found[1][name], own, **close)
    by_id = {row: own for _, _, held in results for row, own in held.items()}
    torch.testing.assert_close(torch.stack([by_id[row] for row in range(ROWS)]), rows, **close)


@pytest.mark.parametrize("place", ["image", "block 1", "block 3"])
@pytest.mark.parametrize("held", [False, True])
def test_updates_are_those_of_a_plain_loop(place, held):
    assert_alike([updated(place, held)], reference(place, held))


@pytest.mark.parametrize("place", ["block 1", "block 3"])
def test_features_are_distilled_where_drawn_ones_enter(place):
    found = updated(place, held=False, kept=True)
    assert_alike([found], reference(place, held=False, kept=True))


def test_as_many_are_drawn_as_there_are_images():
    assert_alike([updated("image", held=True, count=None)], reference("image", True, None))


def test_in_parts_is_as_in_one_piece():
    """Where batch normalisation does not ask which images are together."""
    assert_alike([updated("block 1", held=True, accumulate=3)], reference("block 1", True))


def all_ways():
    """A joined forward of each kind, in one process: ranks take seconds to start."""
    return {
        ("image", False, 1): updated("image", held=False),
        ("block 3", True, 2): updated("block 3", held=True, accumulate=2, kept=True),
        ("image", True, 1): updated("image", held=True, count=2),
    }


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_makes_the_same_updates(world, tmp_path):
    """Of 2 drawn images one of three ranks has none."""
    results = on_ranks(world, all_ways, folder=tmp_path)
    wanted = {
        ("image", False, 1): reference("image", False),
        ("block 3", True, 2): reference("block 3", True, kept=True),
        ("image", True, 1): reference("image", True, 2),
    }
    for way, right in wanted.items():
        assert_alike([found[way] for found in results], right)


def test_what_is_drawn_has_every_class_equally_often():
    seen = []

    @dataclass(frozen=True)
    class Watched(ReplayInputs):
        def __call__(self, forward):
            seen.append(forward.drawn)
            return super().__call__(forward)

    term = Watched(1.0, Gaussians(), "image", 2 * OLD)
    own = Grown(term, "1 / (f + 1)").at(OLD).among(OLD, 3)
    assert Recipe(terms=(own,)).enters == term.enters, "whatever weighs it"
    assert term.at(0) is None
    step, _ = stepper(Recipe(terms=(Classify(over="all"), term)), Waves(SHAPES["image"]))
    run(step)
    for drawn in seen:
        assert np.bincount(drawn.classes.numpy()).tolist() == [2] * OLD
        assert drawn.embeddings.shape == (2 * OLD, DIMENSION)


def test_what_cannot_enter_is_refused():
    for place, source, said in (
        ("image", Waves((3, 8, 8)), "drawn inputs are 3 x 8 x 8, and at image the network has 3"),
        ("image", Waves(SHAPES["image"], rows=4), "of 4 identities, and 5 were learned before"),
        ("block 4", Waves(SHAPES["image"]), "has block 1, block 2, block 3: set at to one"),
    ):
        with pytest.raises(InputError, match=said):
            run(stepper(recipe(place), source)[0])


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 2, "depth": 2},
        {"architecture": "resnet32"},
        {"architecture": "resnet18", "stem": "small"},
        {"architecture": "resnet18", "last_relu": False},
    ],
)
def test_a_block_is_reached_by_the_parts_before_it(changed):
    network = build_embedder(EmbedderSettings(**{"dimension": DIMENSION, **changed})).train()
    hold_batch_norm(network)
    modes = [module.training for module in network.modules()]
    size = (32, 24)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    places = blocks(network, size)
    entrances = {name: Entrance(network, name, size) for name in places}
    assert [module.training for module in network.modules()] == modes
    network.eval()
    with watched(places) as made, torch.no_grad():
        plain = network(images)
    for name, entrance in entrances.items():
        assert entrance.shape == tuple(made[name].shape[1:])
        with torch.no_grad(), entrance.joined(made[name]):
            both = network(images)
        torch.testing.assert_close(both[:2], plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(both[2:], plain, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(entrance.embedded(made[name]), plain, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(entrance.until(images), made[name])
            assert torch.equal(network(images), plain), "nothing of it stays"
