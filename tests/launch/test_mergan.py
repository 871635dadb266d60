"""Replay of images in whole runs: what the generator learns, stops, memory and pictures of it."""

import json

import numpy as np
import pytest
import torch

from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.settings import InputError
from data_shards.splits.benchmark_file import write_benchmark
from data_shards.splits.published_benchmarks import class_incremental
from data_shards.storage.dataset import ShardDataset
from launch.config.load import load_config
from launch.execution.in_process import InProcess
from launch.phases.planning import phases
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.run import Run
from monitoring.memory import memory
from tests.alone import execute_alone
from tests.launch.classes import write_classes, write_config
from tests.launch.test_analyses import analyse
from trainer.checkpoint import Folder
from trainer.replay import wgan_training
from trainer.replay.source import replayed
from trainer.replay.wgan_folder import ConvWgans
from trainer.replay.wgan_settings import ConvWganSettings
from trainer.replay.wgan_updates import WganUpdates

GAN = {
    "noise": 4,
    "width": 2,
    "epochs": 4,
    "batch": 16,
    "learning_rate": 0.001,
    "critic_updates": 2,
    "checkpoint_every": 5,
    "watch_every": 10,
    "least_variance": 0.0,
}
METHODS = {"mergan": {"gan": GAN}}
HOW = ConvWgans(ConvWganSettings(**GAN))
STEPS, SIZE = 2, (16, 16)


def configured(root, **values):
    given = {
        "benchmark": {"file": str(root / "two.json"), "steps": STEPS},
        "training": {"iterations": 3, "batch": 24, "milestones": []},
        "data": {"augmentation": {"flip": True}, "image_size": [*SIZE]},
        **values,
    }
    return load_config(write_config(root, METHODS, **given))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_classes(tmp_path_factory.mktemp("mergan"))
    two = class_incremental(ShardDataset.open(root / "d"), STEPS - 1)
    write_benchmark(two, root / "two.json")
    return root


@pytest.fixture(scope="module")
def seen():
    """What generators were trained on."""
    return []


@pytest.fixture(scope="module")
def finished(root, seen):
    begun = wgan_training.WganSpec.begun

    def noted(self, seed):
        seen.append(self.features)
        return begun(self, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wgan_training.WganSpec, "begun", noted)
        execute_alone(configured(root), root / "run")
    return root


def of_step(run, step):
    return run / f"chains/mergan/seed-0/steps/{step}"


def networks(run, step):
    return HOW.networks(Folder.at(of_step(run, step) / "generator"))


def test_a_generator_learns_the_steps_images_as_training_sees_them(finished, seen):
    """As they are and mirrored, at the size of training, from -1 to 1."""
    run = Run.open(finished / "run", configured(finished))
    for step, rows in enumerate(run.benchmark.row_ends):
        samples = np.sort(run.benchmark.steps[step])
        requests = iter([Request.plain(run.dataset, samples, flip) for flip in (False, True)])
        settings = PipelineSettings(image_size=SIZE)
        stream = ImageStream(run.dataset, requests, len(samples), settings, augmented=False)
        expected = torch.cat([images.clone() for _, images in stream])
        assert torch.equal(seen[step].vectors, expected)
        labels = run.benchmark.row_of_identity[run.dataset.identity[samples]]
        assert seen[step].classes.tolist() == [*labels, *labels]
        made = seen[step].at(np.arange(5))
        torch.testing.assert_close(made, (expected[:5].float() - 127.5) / 127.5)
        left = networks(finished / "run", step)
        assert (left.rows, left.shape.features) == (rows, (3, *SIZE))
        assert left.shape.ends == "tanh"
        assert replayed(left.generator, 2, 0, 0, torch.device("cpu"))[0].shape == (2, 3, *SIZE)


def test_the_second_training_is_given_what_the_first_generator_draws(finished):
    run = Run.open(finished / "run", configured(finished))
    (training,) = (p for p in phases(run) if p.name == "mergan/seed-0/step-1/train")
    (given,) = (p for p in training.inputs if p.kind.prepares_next)
    assert given.output.path == of_step(finished / "run", 0) / "generator"
    lines = (finished / "run/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    own = [r for r in records if r["phase"] == training.name]
    assert {"classify", "replay"} <= set(own[-1]["losses"] if "losses" in own[-1] else own[-1])


def test_the_memory_counts_both_networks_bytes(finished):
    found = memory(finished / "run")
    for step in range(STEPS):
        own = sum(networks(finished / "run", step).bytes().values())
        assert found["mergan", step]["generator_bytes"] == own


def test_drawn_images_are_laid_out_by_their_embeddings(finished):
    pytest.importorskip("sklearn")
    analyse("features", finished / "run", "--method", "mergan")
    file = finished / "run/analyses/features/mergan/seed-0/step-1.json"
    groups = json.loads(file.read_text())["groups"]
    assert {group["origin"] for group in groups} == {"test", "generated"}
    assert np.isfinite(
        [group["points"] for group in groups if group["origin"] == "generated"]
    ).all()


def test_stopped_within_and_gone_on_with_is_the_same(finished, tmp_path, monkeypatch):
    """In the units that decode images, and in the training of the first generator."""
    step, mapped, stopped = WganUpdates.step, InProcess.map, []

    def stopping(self, stop=False):
        if self.iteration == 8 and "training" not in stopped:
            stopped.append("training")
            raise KeyboardInterrupt
        return step(self, stop)

    def halved(self, unit, calls):
        if unit.__name__ == "write_images" and "units" not in stopped:
            stopped.append("units")
            mapped(self, unit, calls[: len(calls) // 2])
            raise KeyboardInterrupt
        return mapped(self, unit, calls)

    monkeypatch.setattr(WganUpdates, "step", stopping)
    monkeypatch.setattr(InProcess, "map", halved)
    for name in ("d", "two.json", "b.json"):
        (tmp_path / name).symlink_to(finished / name)
    config, ends = configured(tmp_path), 0
    while True:
        try:
            execute_alone(config, tmp_path / "run")
            break
        except (KeyboardInterrupt, InputError):  # of a unit, and of a rank
            ends += 1
    assert (ends, stopped) == (2, ["units", "training"])
    for number in range(STEPS):
        for file in ("generator/generator.safetensors", "model/embedder.safetensors"):
            ours, theirs = (of_step(r, number) / file for r in (tmp_path / "run", finished / "run"))
            assert ours.read_bytes() == theirs.read_bytes(), (number, file)


def test_the_plan_counts_what_enters(root):
    """Twice the images' activations, and the generator's memory."""
    plans = {}
    for name, methods in (("mergan", METHODS), ("finetune", {"finetune": {"over": "all"}})):
        given = {
            "dataset": str(root / "no data"),
            "benchmark": {"steps": 2, "test_identities": 20},
            "data": {"image_size": [*SIZE]},
            "training": {"iterations": 3, "batch": 24, "milestones": []},
        }
        config = load_config(write_config(root, methods, **given))
        plans[name] = plan_run(config, split_of(config, 100, 1000), None).steps
    for ours, theirs in zip(plans["mergan"], plans["finetune"], strict=True):
        assert ours.memory["embedder"] == theirs.memory["embedder"]
        ratio = ours.memory["activations"] / theirs.memory["activations"]
        assert ratio == pytest.approx(2.0 if ours.step else 1.0, rel=0.05)
        sizes = {"generator": 0, "critic": 0}
        if ours.step:
            made = HOW.imagined(ours.old_identities, (3, *SIZE))
            sizes["generator"] = sum(p.nbytes for p in made.parameters())
            sizes["critic"] = HOW.beside(ours.old_identities, (3, *SIZE))
        assert ours.memory["loaded for losses"] == sizes["generator"]
        assert ours.disk.get("loaded for losses", 0) == sum(sizes.values())
