"""The conditional WGAN of images: its networks and losses against formulas, and its training."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data_shards.settings import InputError
from tests.chaos import wgan_kills
from tests.chaos.wgan_kills import train
from tests.ranks import on_ranks
from trainer.activity import Activity
from trainer.checkpoint import DamagedError, Folder, save_folder
from trainer.heads.collectives import Ranks
from trainer.methods.mergan import MemoryReplayGAN
from trainer.methods.plain import Finetune
from trainer.replay.source import replayed
from trainer.replay.wgan import Wgan
from trainer.replay.wgan_folder import ConvWgans
from trainer.replay.wgan_health import Health
from trainer.replay.wgan_losses import gradient_penalty, replay_alignment
from trainer.replay.wgan_settings import ConvWganSettings
from trainer.replay.wgan_updates import Features, WganUpdates

CPU = torch.device("cpu")
SIZE = (8, 8)
SETTINGS = ConvWganSettings(
    noise=4,
    width=2,
    epochs=10,
    batch=16,
    learning_rate=1e-3,
    critic_updates=2,
    watch_every=10,
    checkpoint_every=7,
    least_variance=0.0,
)
HOW = ConvWgans(SETTINGS)


def shape(settings=SETTINGS, features=(3, *SIZE), ends="tanh"):
    return settings.shape_for(features, ends)


def pixels(images):
    return images.float().sub(127.5).div(127.5)


def pictures(first, last, count=10):
    """Uint8 images of the classes first <= c < last: each has a brightness of its own."""
    classes = torch.arange(first, last).repeat_interleave(count)
    drawn = torch.Generator().manual_seed(first)
    noise = torch.randint(-20, 20, (len(classes), 3, *SIZE), generator=drawn)
    images = (40 + 40 * classes[:, None, None, None] + noise).clamp(0, 255).to(torch.uint8)
    return Features(images, classes.numpy(), pixels)


# Networks


def test_the_authors_settings_are_the_defaults():
    usual = MemoryReplayGAN().gan
    assert (usual.learning_rate, usual.betas, usual.batch) == (1e-4, (0.0, 0.9), 64)
    assert (usual.critic_updates, usual.penalty, usual.noise) == (5, 10.0, 128)
    assert usual.rate(10**6, 100) == 1e-4
    with pytest.raises(ValueError, match="one-hot"):
        ConvWganSettings(class_input="mean")


def test_both_networks_of_100_classes_are_about_as_large_as_the_papers():
    """GFR's Table 1 gives MeRGAN 8.5 MB."""
    networks = Wgan.new(shape(ConvWganSettings(), (3, 32, 32)), 100, None, seed=0, step=0)
    assert sum(networks.bytes().values()) == pytest.approx(8.5e6, rel=0.25)


@pytest.mark.parametrize(
    ("features", "halvings"),
    [((3, 32, 32), 3), ((3, 28, 12), 1), ((5, 8, 16), 1), ((4, 2, 1), 0), ((2, 64, 64), 4)],
)
def test_any_size_can_be_drawn_and_judged(features, halvings):
    own = shape(features=features, ends="none")
    assert own.halvings == halvings
    networks = Wgan.new(own, 3, None, seed=0, step=0)
    drawn, classes = replayed(networks.generator, 6, 0, 0, CPU)
    assert drawn.shape == (6, *features) == (6, *own.features)
    assert networks.critic(drawn, classes).shape == (6,)


def test_images_are_within_the_range_of_pixels_and_features_behind_a_relu():
    for ends, low, high in (("tanh", -1, 1), ("relu", 0, 99)):
        networks = Wgan.new(shape(ends=ends), 3, None, seed=0, step=0)
        with torch.no_grad():
            networks.generator.last.weight *= 50
        drawn, _ = replayed(networks.generator, 30, 0, 0, CPU)
        assert drawn.min() >= low
        assert drawn.max() <= high
        assert drawn.std() > 0.1


def test_an_image_does_not_depend_on_what_else_is_drawn():
    generator = Wgan.new(shape(), 3, None, seed=0, step=0).generator
    classes = torch.tensor([0, 1, 2, 0])
    noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    together = generator.features(classes, noise)
    for number in range(4):
        alone = generator.features(classes[number, None], noise[number, None])
        torch.testing.assert_close(alone[0], together[number], rtol=1e-4, atol=1e-6)


def test_the_critic_projects_the_class():
    """Miyato and Koyama, Eq. 3: psi(phi(x)) + v_c . phi(x), phi the sum over pixels; a pixel at a
    time, in float64."""
    own = shape(features=(3, 8, 8), ends="none")
    critic = Wgan.new(own, 4, None, seed=0, step=0).critic
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([2, 0, 3, 1])
    state = {name: tensor.double() for name, tensor in critic.state_dict().items()}
    for number in range(4):
        x = images[number].double()
        for name, stride in (("stages.0", 1), ("stages.2", 2)):
            weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
            side, reach = weight.shape[-1], x.shape[-1] // stride
            padded = F.pad(x, (1, 1, 1, 1))
            out = torch.empty(len(weight), reach, reach).double()
            for down in range(reach):
                for right in range(reach):
                    top, left = stride * down, stride * right
                    window = padded[:, top : top + side, left : left + side]
                    out[:, down, right] = (weight * window).sum(dim=(1, 2, 3)) + bias
            x = torch.where(out > 0, out, 0.2 * out)
        hidden = x.sum(dim=(1, 2))
        psi = state["score.weight"][0] @ hidden + state["score.bias"][0]
        expected = psi + state["of_class.weight"][classes[number]] @ hidden
        found = critic(images, classes)[number].double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_growth_changes_nothing_for_old_classes():
    before = Wgan.new(shape(), 3, None, seed=0, step=0)
    after = before.grown(5, None, seed=0, step=1)
    drawn, classes = replayed(before.generator, 9, 0, 0, CPU)
    assert torch.equal(drawn, replayed_of(after, before, 9))
    assert torch.equal(before.critic(drawn, classes), after.critic(drawn, classes))
    added = {k: after.bytes()[k] - before.bytes()[k] for k in ("generator", "critic")}
    assert added == {"generator": 2 * 4 * 8 * 2, "critic": 2 * 4 * 8 * 2}
    assert before.grown(5, None, seed=0, step=1).bytes() == after.bytes()


def replayed_of(networks, before, count):
    """By the generator of `networks`, of what `before` knows."""

    class Known:
        rows, noise = before.rows, before.generator.noise
        features = staticmethod(networks.generator.features)

    return replayed(Known(), count, 0, 0, CPU)[0]


# Losses


def test_the_penalty_is_of_each_images_own_gradient():
    critic = Wgan.new(shape(), 3, None, seed=0, step=0).critic.double()
    drawn = torch.Generator().manual_seed(0)
    real, made = (torch.randn(5, 3, *SIZE, generator=drawn).double() for _ in range(2))
    share, classes = torch.rand(5, 1, generator=drawn).double(), torch.tensor([0, 1, 2, 0, 1])
    expected, step = 0.0, 1e-5
    for a, b, t, c in zip(real, made, share, classes, strict=True):
        point, slope = a + t * (b - a), []
        for place in np.ndindex(3, *SIZE):
            ends = []
            for sign in (1, -1):
                moved = point.clone()
                moved[place] += sign * step
                ends.append(critic(moved[None], c[None]).item())
            slope.append((ends[0] - ends[1]) / (2 * step))
        expected += (float(np.linalg.norm(slope)) - 1) ** 2
    found = gradient_penalty(critic, real, made, classes, share)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_no_penalty_for_a_linear_critic_of_unit_gradient():
    direction = F.normalize(torch.randn(3 * 64).double(), dim=0)
    real, made = torch.randn(2, 6, 3, *SIZE).double()
    found = gradient_penalty(
        lambda x, c: x.flatten(1) @ direction, real, made, None, torch.rand(6, 1).double()
    )
    assert float(found.detach()) == pytest.approx(0, abs=1e-12)


def test_the_alignment_is_the_mean_over_old_classes_times_lambda():
    """And 0 where nothing has moved. Released: half the sum of squares of 64 / k images of each of
    k classes, over k, times 1e-2."""
    before = Wgan.new(shape(), 3, None, seed=0, step=0)
    after = before.grown(5, None, seed=0, step=1)
    settings = SETTINGS.model_copy(update={"critic_updates": 1, "batch": 30})
    updates = WganUpdates(settings, pictures(3, 5), after, before.generator, seed=0, ranks=Ranks())
    assert updates.step().alignment == 0
    apart = torch.randn(64, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    old = 4  # 16 of each
    released = 1e-2 * float(apart.square().sum()) / 2 / old
    sum_over_classes = old * float(replay_alignment(apart, 0 * apart)) / 64
    assert SETTINGS.alignment_weight(7, old) * sum_over_classes == pytest.approx(released)
    fixed = SETTINGS.model_copy(update={"alignment": 1e-3})
    mean = sum_over_classes / old
    assert fixed.alignment_weight(7, old) * sum_over_classes == pytest.approx(1e-3 * mean)
    assert SETTINGS.alignment_weight(7, 0) == 0


LEARNING = ConvWganSettings(noise=8, width=4, batch=16, critic_updates=2, learning_rate=2e-3)


def brightness_off(networks):
    """Of each class' drawn images, by how much it misses the true one's; classes are 40 / 127.5
    apart."""
    off = []
    for number in range(networks.rows):
        noise = torch.randn(200, 8, generator=torch.Generator().manual_seed(number))
        drawn = networks.generator.features(torch.full((200,), number), noise)
        off.append(abs(drawn.mean().item() - (40 + 40 * number - 128) / 127.5))
    return off


def learned(networks, features, before, settings=LEARNING):
    updates = WganUpdates(settings, features, networks, before, seed=0, ranks=Ranks())
    for _ in range(200):
        updates.step()
    return networks


def test_classes_are_learned_and_alignment_is_what_keeps_them():
    first = learned(Wgan.new(shape(LEARNING), 3, None, seed=0, step=0), pictures(0, 3, 100), None)
    assert max(brightness_off(first)) < 0.15
    drifting = LEARNING.model_copy(update={"alignment": 0.0})
    kept, lost = (
        learned(first.grown(5, None, seed=0, step=1), pictures(3, 5, 100), first.generator, own)
        for own in (LEARNING, drifting)
    )
    assert max(brightness_off(kept)) < 0.15
    assert min(brightness_off(lost)[:3]) > 0.3
    assert max(brightness_off(lost)[3:]) < 0.15


# Training


def spec(out, **changed):
    """The second step of two of a generator of three and two classes: 13 iterations."""
    before = Wgan.new(shape(), 3, None, seed=0, step=0)
    given = {"how": HOW, "ends": "tanh", "features": pictures(3, 5), "before": before}
    return wgan_kills.spec(out, **{**given, **changed})


def hashes(out):
    folder = Folder.at(out / "generator")
    folder.verify()
    return folder.hashes


def trained(out):
    torch.set_num_threads(1)
    done, records, _ = train(spec(out))
    return done, records[-1]["iteration"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("images")
    assert trained(out) == (True, 13)
    return out


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_makes_the_same_networks(undisturbed, tmp_path, world):
    on_ranks(world, trained, tmp_path, folder=tmp_path / "store")
    alone, together = (
        Folder.at(out / "generator").tensors("generator") for out in (undisturbed, tmp_path)
    )
    for name, own in alone.items():
        torch.testing.assert_close(together[name], own, rtol=1e-3, atol=1e-4)


def test_a_stop_saves_and_goes_on_to_the_same_bits(undisturbed, tmp_path, monkeypatch):
    step, activity = WganUpdates.step, Activity()

    def stopped(self, asked=False):
        if self.iteration == 8:
            activity.stop.set()
        return step(self, asked or activity.stop.is_set())

    monkeypatch.setattr(WganUpdates, "step", stopped)
    done, _, _ = train(spec(tmp_path), activity=activity)
    assert not done
    assert not (tmp_path / "generator").exists()
    monkeypatch.undo()
    done, records, _ = train(spec(tmp_path))
    assert done
    assert records[0]["iterations"] < 10, "it went on"
    assert hashes(tmp_path) == hashes(undisturbed)


def test_a_folder_keeps_all_of_it(undisturbed):
    folder = Folder.at(undisturbed / "generator")
    networks, source = HOW.networks(folder), HOW.read(folder, CPU)
    assert (networks.rows, source.rows) == (5, 5)
    assert networks.shape == shape()
    assert folder.card("generator")["bytes"] == sum(networks.bytes().values())
    dry = HOW.imagined(5, (3, *SIZE))
    assert [p.shape for p in dry.parameters()] == [p.shape for p in source.parameters()]
    assert HOW.beside(5, (3, *SIZE)) == networks.bytes()["critic"]
    with pytest.raises(InputError, match="width = 2, not 3"):
        ConvWgans(SETTINGS.model_copy(update={"width": 3})).read(folder, CPU)


def test_a_card_of_other_networks_is_found_out_before_they_are_made(undisturbed, tmp_path):
    networks = HOW.networks(Folder.at(undisturbed / "generator"))
    files, card = HOW.files(networks, "this")
    save_folder(tmp_path / "generator", files, {**card, "size": [8000, 8000]}, Ranks())
    with pytest.raises(DamagedError, match=r"generator\.safetensors"):
        HOW.networks(Folder.at(tmp_path / "generator"))


def test_images_of_another_size_are_refused(tmp_path):
    small = pictures(3, 5)
    with pytest.raises(InputError, match=r"of 3 x 8 x 8 numbers, and of 3 x 4 x 4 now"):
        train(
            spec(tmp_path, features=Features(small.vectors[..., ::2, ::2], small.classes, pixels))
        )


def test_what_does_not_vary_is_noticed():
    features = pictures(0, 3)
    networks = Wgan.new(shape(), 3, None, seed=0, step=0)
    health = Health(features.at(np.arange(30)), features.classes, 0.05, seed=0)
    with torch.no_grad():
        networks.generator.last.weight *= 0
    assert health.look(networks.generator, judge=True) == "collapsed"


# The method


def test_step_0_is_that_of_finetuning_and_nothing_is_distilled():
    method = MemoryReplayGAN()
    assert method.recipe().at(0, 0) == Finetune().recipe().at(0, 0)
    later = method.recipe().at(1, 5, 3)
    assert [term.name for term in later.terms] == ["classify", "replay"]
    assert later.enters is not None
    assert later.enters.place == "image"
