"""Gradients through a few steps of training: held against finite differences and torch.func."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_shards.settings import InputError
from monitoring.metrics import Metrics
from trainer.activity import Activity
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.margins import Cosine, Softmax
from trainer.mnemonics.footprint import update_footprint
from trainer.mnemonics.optimisation import Group, Optimisation, Pool, Side, halves, in_turn
from trainer.mnemonics.settings import MnemonicsSettings
from trainer.mnemonics.training import MnemonicsSpec, optimise
from trainer.mnemonics.unrolled import (
    Classified,
    Labelled,
    hypergradient,
    loss_of,
    pixels,
    rounded,
    trained,
)

SIDE, CLASSES, RATE = 8, 3, 0.3
COSINE = ClassifierSettings(margin=Cosine())
LINEAR = ClassifierSettings(margin=Softmax())


def network_of(classifier=LINEAR, activation="none", width=2):
    """With running statistics that are not those of a new network, in float64."""
    settings = EmbedderSettings(width=width, depth=1, dimension=4, activation=activation)
    embedder = build_embedder(settings, seed=3)
    drawn = torch.Generator().manual_seed(0)
    for name, value in embedder.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=drawn) * 0.1 + name.endswith("var"))
    rows = torch.randn(CLASSES, 4, generator=drawn)
    return Classified(embedder, rows, classifier).double()


def drawn_images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    return Labelled(images, torch.arange(count) % CLASSES)


def batches_of(exemplars, steps, others=None):
    """Two exemplars a step, in turn."""
    count = len(exemplars.images)
    chosen = [torch.tensor([(2 * i) % count, (2 * i + 1) % count]) for i in range(steps)]
    return [(places, exemplars.labels[places], others) for places in chosen]


NETWORKS = [(LINEAR, "none"), (COSINE, "cosine")]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize(("classifier", "activation"), NETWORKS)
def test_the_gradient_is_that_of_finite_differences(classifier, activation, steps, recompute):
    network = network_of(classifier, activation)
    exemplars, outer, others = drawn_images(4, 1), drawn_images(6, 2), drawn_images(2, 3)
    batches = batches_of(exemplars, steps, others)

    def loss(images):
        given = [
            Labelled(torch.cat([images[p], o.images]), torch.cat([labels, o.labels]))
            for p, labels, o in batches
        ]
        return float(loss_of(network, trained(network, given, RATE), outer).detach())

    value, found = hypergradient(network, exemplars.images, batches, outer, RATE, recompute)
    assert float(value) == pytest.approx(loss(exemplars.images), rel=1e-12)
    assert found.abs().max() > 1e-6
    step = 1e-5
    largest = found.abs().flatten().topk(6).indices.tolist()
    for place in (*largest, 0, 100, found.numel() - 1):
        shifted = torch.zeros_like(exemplars.images)
        shifted.view(-1)[place] = step
        slope = (loss(exemplars.images + shifted) - loss(exemplars.images - shifted)) / (2 * step)
        scale = float(found.abs().max())
        assert float(found.view(-1)[place]) == pytest.approx(slope, rel=1e-4, abs=1e-6 * scale)


def by_torch_func(network, exemplars, batches, outer):
    """The same as a composition of functions, by torch.func's own derivatives."""
    named = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(weights, images, labels):
        logits = torch.func.functional_call(network, weights, (images,))
        return -(logits.log_softmax(1)[torch.arange(len(labels)), labels]).mean()

    def whole(images):
        weights = named
        for places, labels, _ in batches:
            slopes = torch.func.grad(loss)(weights, images[places], labels)
            weights = {name: weights[name] - RATE * slopes[name] for name in named}
        return loss(weights, *outer)

    return torch.func.grad(whole)(exemplars.images)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_is_that_of_torch_func(recompute):
    network, exemplars, outer = network_of(), drawn_images(4, 1), drawn_images(6, 2)
    batches = batches_of(exemplars, 3)
    _, found = hypergradient(network, exemplars.images, batches, outer, RATE, recompute)
    torch.testing.assert_close(
        found, by_torch_func(network, exemplars, batches, outer), rtol=1e-9, atol=1e-14
    )


def test_recomputed_steps_give_the_same_gradient():
    network, exemplars, outer = network_of(), drawn_images(6, 1), drawn_images(6, 2)
    batches = batches_of(exemplars, 8, drawn_images(2, 4))
    (loss, plain), (again, recomputed) = (
        hypergradient(network, exemplars.images, batches, outer, RATE, how) for how in (False, True)
    )
    assert torch.equal(loss, again)
    torch.testing.assert_close(plain, recomputed, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("recompute", [False, True])
def test_without_a_step_exemplars_matter_to_nothing(recompute):
    network, exemplars, outer = network_of(), drawn_images(4, 1), drawn_images(6, 2)
    loss, found = hypergradient(network, exemplars.images, [], outer, RATE, recompute)
    assert not found.any()
    logits = network(outer.images).detach()
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits, outer.labels)), rel=1e-12)


def test_exemplars_that_no_step_is_on_get_no_gradient_and_the_model_stays():
    network, exemplars, outer = network_of(), drawn_images(6, 1), drawn_images(6, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    _, found = hypergradient(
        network, exemplars.images, batches_of(exemplars, 2), outer, RATE, False
    )
    assert found[:4].abs().sum(dim=(1, 2, 3)).min() > 0 and not found[4:].any()
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_images_are_what_the_embedder_makes_of_their_pixels():
    every = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    embedder = build_embedder(EmbedderSettings())
    assert torch.equal(pixels(every), embedder.pixels(every))
    assert torch.equal(rounded(pixels(every)), every)
    beyond = torch.tensor([-1.5, -1.0, 1.0, 1.5]).view(1, 1, 2, 2)
    assert rounded(beyond).flatten().tolist() == [0, 0, 255, 255]


def test_a_model_of_pixels_and_of_images_is_one():
    """Evaluated as it decides: running statistics, which stay."""
    network = network_of().float()
    images = torch.randint(0, 256, (5, 3, SIDE, SIDE), dtype=torch.uint8)
    right = network.embedder(images) @ network.rows.T
    torch.testing.assert_close(network(pixels(images)), right, rtol=1e-4, atol=1e-5)


def test_halves_are_equal_and_a_class_keeps_its_own():
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**63, 23).astype(np.uint64)
    labels = np.array([0] * 6 + [4] * 7 + [2] * 9 + [7])
    found = halves(keys, labels, seed=5)
    for label, count in ((0, 6), (4, 7), (2, 9), (7, 1)):
        assert found[labels == label].sum() == -(-count // 2)
    order = rng.permutation(23)
    assert (halves(keys[order], labels[order], 5) == found[order]).all(), "in any order"
    kept = labels != 4
    assert (halves(keys[kept], labels[kept], 5) == found[kept]).all(), "whatever others there are"
    assert (halves(keys, labels, 6) != found).any()


def test_what_is_drawn_comes_equally_often():
    whole = in_turn(3, "s", 5, 0, 20)
    assert np.bincount(whole).tolist() == [4] * 5
    assert (np.sort(whole.reshape(4, 5), axis=1) == np.arange(5)).all()
    assert len({tuple(row) for row in whole.reshape(4, 5).tolist()}) > 1
    parts = [in_turn(3, "s", 5, first, 3) for first in range(0, 18, 3)]
    assert (np.concatenate(parts) == whole[:18]).all()


HOW = MnemonicsSettings(
    epochs=6, inner_steps=3, inner_rate=0.1, learning_rate=0.02, batch=8, inner_batch=4
)


def pool(count, seed, clear=0.6):
    """Images of classes that can be told apart, more or less `clear`."""
    noise, labels = drawn_images(count, seed)
    shown = drawn_images(CLASSES, 99).images[labels]
    return Pool((clear * shown + (1 - clear) * noise).float(), labels)


NOBODY = Pool(torch.empty(0, 3, SIDE, SIDE), torch.empty(0, dtype=torch.int64))


def group(sides="data"):
    exemplars = pool(6, 1, clear=0.3)
    if sides == "data":
        every = (Side(np.arange(6), NOBODY, pool(24, 2), NOBODY),)
    else:
        first = np.array([True, False, True, False, True, False])
        parts = np.flatnonzero(first), np.flatnonzero(~first)
        every = (
            Side(parts[0], NOBODY, parts[1], NOBODY),
            Side(*(parts[1], NOBODY), parts[0], NOBODY),
        )
    return Group(exemplars.at(slice(None)), every, "g")


class Flattened(torch.nn.Module):
    """With rows that begin as 0, training is logistic regression on pixels."""

    def forward(self, images):
        return (images / 127.5 - 1).flatten(1)


@pytest.mark.parametrize("sides", ["data", "halves"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_outer_loss_falls(sides, optimizer):
    rate = {"adam": 0.02, "sgd": 1.0}[optimizer]
    changed = {"optimizer": optimizer, "learning_rate": rate, "inner_rate": 0.05, "epochs": 12}
    how = HOW.model_copy(update=changed)
    network = Classified(Flattened(), torch.zeros(CLASSES, 3 * SIDE * SIDE), LINEAR)
    work = Optimisation(group(sides), network, how, seed=0)
    losses = [work.update() for _ in range(work.total)]
    found = work.verdict()
    assert found["learned"] < found["before"] - 0.01 and len(losses) == work.total
    assert work.images.abs().max() <= 1
    assert abs(found["rounded"] - found["learned"]) < 0.1 * (found["before"] - found["learned"])


def test_an_update_by_sgd_is_the_papers(monkeypatch):
    """E - beta_1 times the gradient, clamped; the rate is halved every so many epochs."""
    how = HOW.model_copy(
        update={"optimizer": "sgd", "learning_rate": 300.0, "halve_every": 2, "epochs": 5}
    )
    network, every = network_of(width=8).float(), group()
    work, before = Optimisation(every, network, how, seed=0), every.exemplars.images
    assert work.total == 5 * 3, "24 images, 8 at a time"
    for number in range(work.total):
        side, before = every.sides[0], work.images.clone()
        inner = work._inner(side, 0, number)
        assert [len(places) for places, _, _ in inner] == [4, 4, 4]
        _, slope = hypergradient(network, before, inner, work._outer(side, 0, number), 0.1)
        work.update()
        rate = 300.0 * 0.5 ** (number // 3 // 2)
        torch.testing.assert_close(work.images, (before - rate * slope).clamp(-1, 1))


def test_halves_learn_in_turn_and_only_one_at_a_time():
    work = Optimisation(group("halves"), network_of(width=8).float(), HOW, seed=0)
    assert work.total == HOW.epochs * 2
    first = torch.tensor([True, False] * 3)
    for number in range(4):
        before = work.images.clone()
        work.update()
        moved = (work.images - before).abs().sum(dim=(1, 2, 3)) > 0
        assert torch.equal(moved, first if number % 2 == 0 else ~first)


def test_other_classes_images_take_half_of_each_batch_and_stay():
    others, beyond = pool(9, 5), pool(40, 6)
    every = Group(
        pool(6, 1).at(slice(None)), (Side(np.arange(6), others, pool(24, 2), beyond),), "g"
    )
    work = Optimisation(every, network_of(width=8).float(), HOW, seed=0)
    assert work.total == HOW.epochs * 24 // 4
    for places, labels, beside in work._inner(every.sides[0], 0, 0):
        assert len(places) == len(labels) == 2 and len(beside.images) == 2
    assert len(work._outer(every.sides[0], 0, 0).labels) == 8
    held = others.images.clone()
    work.update()
    assert torch.equal(held, others.images)


def spec_of(tmp_path, how=HOW):
    work = Optimisation(group(), network_of(width=8).float(), how, seed=0)
    return MnemonicsSpec(
        optimisation=work, settings=how, unfinished=tmp_path / "u.safetensors", origin="o"
    )


def test_a_model_that_diverges_is_an_error_that_says_what_to_lower(tmp_path):
    how = HOW.model_copy(update={"inner_rate": 1e6, "inner_steps": 8})
    with pytest.raises(InputError, match=r"Lower mnemonics.inner_rate = 1e\+06"):
        optimise(spec_of(tmp_path, how), Metrics(), print, Activity())


def test_what_is_stored_is_the_nearest_image_of_8_bits(tmp_path):
    spec = spec_of(tmp_path)
    found = optimise(spec, Metrics(), lambda record: None, Activity())
    exact = spec.optimisation.images
    assert found["pixels"].dtype == np.uint8
    assert (pixels(torch.from_numpy(found["pixels"])) - exact).abs().max() <= 0.5 / 127.5 + 1e-6


def test_a_plan_counts_the_work_of_an_update():
    """Of twice the inner steps nearly twice as much; more, where steps are computed once more."""

    def work(**changed):
        how = HOW.model_copy(update=changed)
        settings = EmbedderSettings(width=2, depth=1, dimension=4)
        found = update_footprint(settings, LINEAR, how, 10, (SIDE, SIDE))
        return sum(operation.flops for operation in found.operations), found.peak

    (usual, held), (twice, more) = work(inner_steps=4), work(inner_steps=8)
    assert 1.7 * usual < twice < 2.05 * usual
    assert 1.5 * held < more < 2.05 * held
    again, (_, least) = work(inner_steps=4, recompute=True), work(inner_steps=8, recompute=True)
    assert 1.1 * usual < again[0] < 2 * usual
    # weights of each step in place of its activations
    assert again[1] < held and least - again[1] < (more - held) / 2
