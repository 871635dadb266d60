"""Training a generator: any number of ranks, stops, kills, and what diverges."""

import json
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_shards.settings import InputError
from tests.chaos.wgan_kills import SETTINGS, spec, train
from tests.ranks import on_ranks
from tests.trainer.features import D, mixture
from trainer.activity import Activity
from trainer.checkpoint import DamagedError, Folder
from trainer.divergence import Diverged
from trainer.heads.collectives import Ranks
from trainer.replay.wgan import Wgan
from trainer.replay.wgan_folder import Wgans
from trainer.replay.wgan_health import Health, spread
from trainer.replay.wgan_updates import Features, WganUpdates


def bytes_of(out):
    folder = Folder.at(out / "generator")
    folder.verify()
    return folder.hashes


def tensors(out):
    return Folder.at(out / "generator").tensors("generator")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    done, records, told = train(spec(out))
    assert (done, told) == (True, [])
    return out, records


def test_what_training_says(undisturbed):
    out, records = undisturbed
    assert [record["iteration"] for record in records] == [10, 20, 30, 38]
    last = records[-1]
    assert last["iteration"] == last["of"] == SETTINGS.iterations(40)
    for record in records:
        assert record["loss"] == pytest.approx(
            SETTINGS.penalty * record["penalty"] - record["distance"], rel=1e-5
        )
        assert record["images_per_second"] > 0
        assert math.isfinite(record["generator"]) and record["alignment"] >= 0
    assert not (out / "checkpoints").exists()


def trained(out, *args):
    train(spec(out, **dict(args)))
    return True


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_makes_the_same_networks(undisturbed, tmp_path, world):
    """Three do not share a batch of 32 evenly. One world makes the same bits each time."""
    for name in ("a", "b"):
        on_ranks(world, trained, tmp_path / name, folder=tmp_path / f"store-{name}")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    alone, together = tensors(undisturbed[0]), tensors(tmp_path / "a")
    for name, own in alone.items():
        torch.testing.assert_close(together[name], own, rtol=1e-3, atol=1e-4)


def stopped_at(updates, iteration, stop):
    """A step that sets `stop` before the iteration with this number."""

    def step(self, asked=False):
        if self.iteration == iteration:
            stop.set()
        return updates(self, asked)

    return step


def test_a_stop_saves_and_goes_on_to_the_same_bits(undisturbed, tmp_path, monkeypatch):
    step, activity = WganUpdates.step, Activity()
    monkeypatch.setattr(WganUpdates, "step", stopped_at(step, 15, activity.stop))
    done, _, _ = train(spec(tmp_path), activity=activity)
    assert not done and not (tmp_path / "generator").exists()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} >= {"17"}
    monkeypatch.undo()
    done, records, _ = train(spec(tmp_path))
    assert done and records[0]["iterations"] == 3
    assert bytes_of(tmp_path) == bytes_of(undisturbed[0])


def test_finished_networks_are_not_trained_again(undisturbed, tmp_path):
    """Where the process ended before it could say so. With another origin they are others'."""
    train(spec(tmp_path))
    assert train(spec(tmp_path)) == (True, [], [])
    _, records, _ = train(spec(tmp_path, origin="that"))
    assert records[-1]["iteration"] == SETTINGS.iterations(40)


def test_a_checkpoint_of_another_training_is_refused(tmp_path, monkeypatch):
    activity = Activity()
    monkeypatch.setattr(WganUpdates, "step", stopped_at(WganUpdates.step, 8, activity.stop))
    train(spec(tmp_path), activity=activity)
    monkeypatch.undo()
    with pytest.raises(InputError, match="another training: move it away"):
        train(spec(tmp_path, origin="that"))


def test_a_wild_learning_rate_is_noticed_and_named(tmp_path):
    wild = SETTINGS.model_copy(update={"learning_rate": 1e3, "least_variance": 0.05})
    training = spec(tmp_path, settings=wild)
    with pytest.raises(Diverged, match="the generator diverged at iteration") as raised:
        train(training)
    assert "learning_rate = 1000" in str(raised.value)
    assert not training.output.exists(), "nothing of it is replayed"
    # the same command says the same, at once
    with pytest.raises(InputError, match="Nothing is replayed from it"):
        train(training)
    found = json.loads((tmp_path / "generator-divergences.json").read_text())
    assert len(found["tries"]) == 2


@pytest.mark.parametrize("where", [3, 20])
def test_one_bad_loss_is_tried_again_with_other_numbers(undisturbed, tmp_path, monkeypatch, where):
    """From the last checkpoint, or from the beginning where there is none yet."""
    step, once = WganUpdates.step, threading.Event()

    def broken(self, stop=False):
        losses = step(self, stop)
        if self.iteration == where and not once.is_set():
            once.set()
            return replace(losses, critic=math.nan)
        return losses

    monkeypatch.setattr(WganUpdates, "step", broken)
    done, records, _ = train(spec(tmp_path))
    assert done
    (event,) = (record for record in records if "event" in record)
    assert (event["event"], event["iteration"], event["why"]) == ("rewind", where, "loss")
    assert "a loss is not finite" in event["message"]
    assert bytes_of(tmp_path) != bytes_of(undisturbed[0])


def test_an_update_without_a_finite_loss_is_not_made():
    features = mixture(0, 2, 20)
    bad = features.vectors.clone()
    bad[:, 0] = math.inf
    networks = Wgan.new(SETTINGS.shape(D, relu=False), 2, None, seed=0, step=0)
    before = [p.clone() for p in networks.critic.parameters()]
    updates = WganUpdates(
        SETTINGS, Features(bad, features.classes), networks, None, seed=0, ranks=Ranks()
    )
    assert not updates.step().finite
    assert all(map(torch.equal, before, networks.critic.parameters()))


def naive_spread(vectors, classes):
    inner, free = 0.0, 0
    for c in np.unique(classes):
        own = vectors[classes == c]
        inner, free = inner + float(((own - own.mean(0)) ** 2).sum()), free + len(own) - 1
    outer = float(((vectors - vectors.mean(0)) ** 2).sum()) / (len(vectors) - 1)
    return inner / free, outer


def test_the_variance_within_classes_and_over_all():
    features = mixture(0, 4, 30)
    found = spread(features.vectors, torch.from_numpy(features.classes))
    expected = naive_spread(features.vectors.double().numpy(), features.classes)
    assert found == pytest.approx(expected, rel=1e-9)


def test_what_counts_as_collapsed_or_scattered():
    """Judged of features alone: here, those of a generator whose output is scaled."""
    features = mixture(0, 4, 30)
    health = Health(features.vectors, features.classes, 0.05, seed=0)
    networks = Wgan.new(SETTINGS.shape(D, relu=False), 4, None, seed=0, step=0)
    generator = networks.generator
    root = math.sqrt(health.generated(generator).within / health.real.within)

    def scaled(ratio):
        networks = Wgan.new(SETTINGS.shape(D, relu=False), 4, None, seed=0, step=0)
        with torch.no_grad():
            networks.generator.last.weight *= math.sqrt(ratio) / root
        return networks.generator

    within = replace_overall(health, scaled(1.0))
    assert within.look(scaled(0.04), judge=True) == "collapsed"
    assert within.look(scaled(0.04), judge=False) is None
    assert within.look(scaled(0.06), judge=True) is None
    assert within.look(scaled(19.0), judge=True) is None
    assert within.look(scaled(21.0), judge=True) == "scattered"
    with torch.no_grad():
        generator.hidden.bias[0] = math.nan
    assert within.look(generator, judge=False) == "weights"


def replace_overall(health, generator):
    """With real features over all as `generator` makes them: what is judged is within classes."""
    health.real = health.real._replace(overall=health.generated(generator).overall)
    return health


@pytest.mark.parametrize("class_input", ["one-hot", "mean"])
def test_a_folder_keeps_all_of_it(tmp_path, class_input):
    settings = SETTINGS.model_copy(update={"class_input": class_input})
    training = spec(tmp_path, settings=settings, before=None, features=mixture(0, 5, 20), step=0)
    train(training)
    how = Wgans(settings)
    folder = Folder.at(tmp_path / "generator")
    source = how.read(folder, torch.device("cpu"))
    networks = how.networks(folder)
    assert source.rows == 5
    grown = networks.grown(7, torch.zeros(2, D) if class_input == "mean" else None, seed=0, step=1)
    noise, classes = torch.randn(5, 4), torch.arange(5)
    made = source.features(classes, noise)
    assert torch.equal(made, grown.generator.features(classes, noise))
    assert folder.card("generator")["bytes"] == sum(networks.bytes().values())
    dry = how.imagined(5, (D,))
    assert [p.shape for p in dry.parameters()] == [p.shape for p in source.parameters()]
    other = Wgans(settings.model_copy(update={"width": 17}))
    with pytest.raises(InputError, match="width = 16, not 17"):
        other.read(folder, torch.device("cpu"))
    (tmp_path / "generator/generator.safetensors").write_bytes(b"")
    with pytest.raises(DamagedError, match="damaged"):
        how.read(folder, torch.device("cpu"))


def test_a_step_with_others_classes_is_no_bug_of_a_user(tmp_path):
    with pytest.raises(ValueError, match="learns classes 3 to 4 has others"):
        train(spec(tmp_path, features=mixture(2, 4, 20)))
