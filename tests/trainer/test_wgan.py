"""The conditional WGAN: its losses against formulas, its growth, and what it learns."""

import math

import numpy as np
import pytest
import torch

from tests.trainer.features import (
    D,
    covariance_error,
    mean_error,
    mixture,
    variance_ratio,
)
from trainer.heads.collectives import Ranks
from trainer.replay.source import replayed
from trainer.replay.wgan import Critic, Generator, Wgan, WganShape
from trainer.replay.wgan_losses import (
    critic_loss,
    generator_loss,
    gradient_penalty,
    replay_alignment,
)
from trainer.replay.wgan_settings import WganSettings
from trainer.replay.wgan_updates import WganUpdates

SMALL = WganSettings(noise=16, width=256, batch=64, critic_updates=3, decay_every=None)


def test_the_authors_settings_are_the_defaults():
    """Sections 5 and D of the paper, and its released code."""
    usual = WganSettings()
    assert (usual.noise, usual.width, usual.class_input) == (200, 512, "one-hot")
    assert (usual.learning_rate, usual.betas, usual.epochs) == (1e-4, (0.5, 0.999), 501)
    assert (usual.critic_updates, usual.penalty) == (5, 10.0)


def test_the_learning_rate_falls_every_so_many_epochs():
    settings = WganSettings(batch=30)
    # 100 features are 3 1/3 batches: epoch 200 begins within batch 667
    rates = [settings.rate(iteration, 100) for iteration in (0, 666, 667, 1333, 1334)]
    assert rates == pytest.approx([1e-4, 1e-4, 3e-5, 3e-5, 9e-6])
    still = settings.model_copy(update={"decay_every": None})
    assert still.rate(10**6, 100) == 1e-4


def test_the_alignments_usual_weight_is_the_released_codes():
    """0.001 C_old / m times the sum over 128 draws, of classes C_old."""
    old, new = 60, 10
    apart = torch.rand(128, generator=torch.Generator().manual_seed(0))
    released = 1e-3 * old / new * float(apart.sum())
    ours = WganSettings().alignment_weight(new, old) * old * float(apart.mean())
    assert ours == pytest.approx(released)
    assert WganSettings(alignment=0.5).alignment_weight(new, old) == 0.5


def test_the_networks_are_the_papers():
    """Table 1 gives generator and discriminator of 100 classes 4.5 MB."""
    networks = Wgan.new(WganSettings().shape(512, relu=True), 100, None, seed=0, step=0)
    sizes = networks.bytes()
    linear = [(300, 512), (512, 512), (512, 512)]
    assert sizes["generator"] == 4 * sum(i * o + o for i, o in linear)
    assert sum(sizes.values()) == pytest.approx(4.5e6, rel=0.2)
    weight = networks.generator.last.weight.detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
    assert float(weight.mean()) == pytest.approx(0, abs=1e-4)
    features, _ = replayed(networks.generator, 50, 0, 0, torch.device("cpu"))
    assert features.shape == (50, 512)
    assert (features >= 0).all() and (features > 0).any()


def shape(class_input, **changed):
    held = {"noise": 5, "width": 7, "class_input": class_input, **changed}
    return WganSettings(**held).shape(D, relu=False)


def a_few(classes, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, D, generator=generator)


def naive_generator(networks, number, noise):
    """The paper's generator of one class and one z, in float64: [z, class] through three layers."""
    state = {name: tensor.double() for name, tensor in networks.generator.state_dict().items()}
    weight = state["of_class.weight"]
    if networks.means is None:
        given, columns = torch.zeros(len(weight)).double(), weight.T
        given[number] = 1
    else:
        given, columns = networks.means.scaled[number].double(), weight
    joined = torch.cat([noise.double(), given])
    first = torch.cat([state["of_noise.weight"], columns], dim=1) @ joined
    first = first + state["of_noise.bias"]
    first = torch.where(first > 0, first, 0.2 * first)
    hidden = state["hidden.weight"] @ first + state["hidden.bias"]
    hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    return state["last.weight"] @ hidden + state["last.bias"]


@pytest.mark.parametrize("class_input", ["one-hot", "mean"])
def test_a_generator_is_three_layers_of_noise_and_class(class_input):
    given = a_few(4) if class_input == "mean" else None
    networks = Wgan.new(shape(class_input), 4, given, seed=0, step=0)
    noise = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    made = networks.generator.features(torch.arange(4), noise)
    for number in range(4):
        expected = naive_generator(networks, number, noise[number])
        torch.testing.assert_close(made[number].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("class_input", ["one-hot", "mean"])
def test_growth_changes_nothing_for_old_classes(class_input):
    means = a_few(9)
    old, new = (means[:5], means[5:]) if class_input == "mean" else (None, None)
    before = Wgan.new(shape(class_input), 5, old, seed=0, step=0)
    after = before.grown(9, new, seed=0, step=1)
    assert (before.rows, after.rows) == (5, 9)
    classes = torch.arange(5).repeat(3)
    noise = torch.randn(15, 5, generator=torch.Generator().manual_seed(0))
    features = before.generator.features(classes, noise)
    assert torch.equal(features, after.generator.features(classes, noise))
    assert torch.equal(before.critic(features, classes), after.critic(features, classes))
    grown = after.bytes()["generator"] - before.bytes()["generator"]
    # identities by the ten thousand add means and no weights
    assert grown == (4 * 4 * 7 if class_input == "one-hot" else 0)
    again = before.grown(9, new, seed=0, step=1)
    other = before.grown(9, new, seed=1, step=1)
    assert same(after, again)
    assert same(after, other) == (class_input == "mean")


def same(one, other):
    pairs = ((one.generator, other.generator), (one.critic, other.critic))
    return all(
        torch.equal(a, b)
        for mine, theirs in pairs
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True)
    )


def test_networks_are_a_function_of_seed_and_step():
    one = Wgan.new(shape("one-hot"), 3, None, seed=0, step=0)
    torch.manual_seed(5)
    assert same(one, Wgan.new(shape("one-hot"), 3, None, seed=0, step=0))
    assert not same(one, Wgan.new(shape("one-hot"), 3, None, seed=1, step=0))
    assert not same(one, Wgan.new(shape("one-hot"), 3, None, seed=0, step=1))
    with pytest.raises(ValueError, match="class_input = mean"):
        Wgan.new(shape("mean"), 3, None, seed=0, step=0)


def linear_critic(weight):
    return lambda features, classes: features @ weight


def test_a_linear_critic_of_unit_gradient_has_no_penalty():
    real, generated = a_few(6, 1), a_few(6, 2)
    classes, share = torch.zeros(6, dtype=torch.int64), torch.rand(6, 1)
    weight = torch.nn.functional.normalize(torch.arange(1.0, 1 + D), dim=0)
    penalty = gradient_penalty(linear_critic(weight), real, generated, classes, share)
    assert float(penalty) == pytest.approx(0, abs=1e-10)
    # of length 3, each of the six samples has (3 - 1)^2
    steep = gradient_penalty(linear_critic(3 * weight), real, generated, classes, share)
    assert float(steep) == pytest.approx(6 * 4, rel=1e-5)


def test_the_penalty_is_each_samples_own_between_its_two_features():
    """D(x) = |x|^2 / 2 has the gradient x, whose length is known anywhere."""
    real, generated = a_few(6, 1).double(), a_few(6, 2).double()
    share = torch.rand(6, 1, generator=torch.Generator().manual_seed(0)).double()
    found = gradient_penalty(
        lambda x, _: x.square().sum(dim=1) / 2, real, generated, torch.zeros(6), share
    )
    expected = 0.0
    for u, v, s in zip(real.tolist(), generated.tolist(), share[:, 0].tolist(), strict=True):
        point = [(1 - s) * a + s * b for a, b in zip(u, v, strict=True)]
        expected += (math.sqrt(sum(a * a for a in point)) - 1) ** 2
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)


def test_the_critics_own_penalty_against_finite_differences():
    critic = Critic(shape("one-hot"), 3, None).double()
    real, generated = a_few(4, 1).double(), a_few(4, 2).double()
    classes, share = torch.tensor([0, 2, 1, 0]), torch.full((4, 1), 0.25).double()
    found = gradient_penalty(critic, real, generated, classes, share)
    expected, tiny = 0.0, 1e-6
    for number in range(4):
        point, own = 0.75 * real[number] + 0.25 * generated[number], classes[number : number + 1]
        ways = tiny * torch.eye(D).double()
        up, down = (critic((point + s * ways), own.expand(D)) for s in (1, -1))
        slope = (up - down) / (2 * tiny)
        expected += float((slope.detach().norm() - 1) ** 2)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-6)
    # it can be differentiated again: that is what trains the critic
    slopes = torch.autograd.grad(found, critic.first.weight)
    assert float(slopes[0].abs().sum()) > 0


def test_losses_are_sums_over_samples():
    critic = Critic(shape("one-hot"), 3, None).double()
    real, generated = a_few(4, 1).double(), a_few(4, 2).double()
    classes = torch.tensor([0, 2, 1, 0])
    one, other = slice(0, 1), slice(1, 4)
    for loss in (
        lambda own: critic_loss(critic, real[own], generated[own], classes[own]),
        lambda own: generator_loss(critic, generated[own], classes[own]),
        lambda own: replay_alignment(generated[own], real[own]),
    ):
        torch.testing.assert_close(loss(one) + loss(other), loss(slice(None)))
    scores = [critic(x, classes).tolist() for x in (generated, real)]
    assert critic_loss(critic, real, generated, classes).item() == pytest.approx(
        sum(a - b for a, b in zip(*scores, strict=True))
    )
    assert generator_loss(critic, generated, classes).item() == pytest.approx(-sum(scores[0]))


def trained(features, networks, before, stages, *, seed=0, settings=SMALL):
    """`networks` after stages of so many updates at a learning rate."""
    for number, (rate, count) in enumerate(stages):
        settings = settings.model_copy(update={"learning_rate": rate})
        updates = WganUpdates(
            settings, features, networks, before, seed=seed + number, ranks=Ranks()
        )
        for _ in range(count):
            losses = updates.step()
        assert losses.finite
    return networks


@pytest.fixture(scope="module")
def of_three():
    """Networks for classes 0, 1 and 2."""
    networks = Wgan.new(SMALL.shape(D, relu=False), 3, None, seed=0, step=0)
    return trained(mixture(0, 3, 300), networks, None, [(1e-3, 500), (3e-4, 300)])


def test_means_and_covariances_of_a_mixture_are_learned(of_three):
    """Means to 0.6 deviations, variances to a third, covariances to 0.8 of their norm: one that
    is nothing at all is off by 1, a line through the mean by more."""
    for number in range(3):
        assert mean_error(of_three.generator, number) < 0.6
        assert 0.67 < variance_ratio(of_three.generator, number) < 1.5
        assert covariance_error(of_three.generator, number) < 0.8


def three_steps(of_three, alignment):
    """The networks of classes 0 to 6, after a second and a third step of two classes each."""
    networks, settings = of_three, SMALL.model_copy(update={"alignment": alignment})
    for step, rows in ((1, 5), (2, 7)):
        before = networks
        networks = before.grown(rows, None, seed=0, step=step)
        features = mixture(before.rows, rows, 300)
        stages = [(1e-3, 300)]
        trained(features, networks, before.generator, stages, seed=10 * step, settings=settings)
    return networks.generator


def test_alignment_is_what_keeps_old_classes(of_three):
    """Class means are 2.7 deviations apart from 0 on average."""
    kept, lost = three_steps(of_three, 0.2), three_steps(of_three, 0.0)
    for number in range(3):
        assert mean_error(kept, number) < 1.0
        assert 0.5 < variance_ratio(kept, number) < 1.7
        assert mean_error(lost, number) > 1.5
    # and the new ones are learned beside them
    assert all(mean_error(kept, number) < 1.5 for number in (5, 6))


def test_alignment_starts_at_nothing_and_is_the_papers_sum(of_three):
    """Eq. 3: over old classes, the mean over z. At G = G_old it is 0."""
    after = of_three.grown(5, None, seed=0, step=1)
    settings = SMALL.model_copy(update={"critic_updates": 1, "batch": 3000})
    features = mixture(3, 5, 20)

    def first_alignment(networks):
        updates = WganUpdates(
            settings, features, networks, of_three.generator, seed=0, ranks=Ranks()
        )
        return updates.step().alignment

    assert first_alignment(after) == 0
    moved = of_three.grown(5, None, seed=0, step=1)
    with torch.no_grad():
        moved.generator.last.bias += 0.5
    # every feature is off by 0.5 in 8 dimensions, for each of three old classes
    assert first_alignment(moved) == pytest.approx(3 * D * 0.25, rel=1e-5)
    with torch.no_grad():
        moved.generator.of_class.weight[1] += 0.1
    expected = 0.0
    for number in range(3):
        noise = torch.randn(20_000, SMALL.noise, generator=torch.Generator().manual_seed(number))
        classes = torch.full((len(noise),), number)
        apart = moved.generator.features(classes, noise) - of_three.generator.features(
            classes, noise
        )
        expected += float(apart.square().sum(dim=1).mean())
    assert first_alignment(moved) == pytest.approx(expected, rel=0.02)


def test_class_means_tell_classes_apart():
    features = mixture(0, 3, 300)
    means = torch.stack([features.vectors[features.classes == c].mean(dim=0) for c in range(3)])
    settings = SMALL.model_copy(update={"class_input": "mean"})
    networks = Wgan.new(settings.shape(D, relu=False), 3, means, seed=0, step=0)
    made = trained(features, networks, None, [(1e-3, 300)], settings=settings).generator
    assert all(mean_error(made, number) < 1.0 for number in range(3))


def test_a_source_knows_its_numbers(of_three):
    generator: Generator = of_three.generator
    assert (generator.rows, generator.noise) == (3, 16)
    features, classes = replayed(generator, 30, 0, 4, torch.device("cpu"))
    assert not features.requires_grad
    assert np.bincount(classes.numpy()).tolist() == [10, 10, 10]


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="noise"):
        WganShape(dimension=8, noise=0, width=8, class_input="one-hot", relu=False)
