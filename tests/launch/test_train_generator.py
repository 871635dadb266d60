"""A conditional WGAN within whole runs: which features, what is carried on, and stops."""

import json
import shutil

import numpy as np
import pytest
import torch

from data_shards.settings import InputError
from data_shards.splits.benchmark_file import write_benchmark
from data_shards.splits.published_benchmarks import class_incremental
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from launch.config.load import load_config
from launch.execution.in_process import InProcess
from launch.exits import Preempted
from launch.phases.planning import phases
from launch.phases.train_generator import behind_relu
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.run import Run
from tests.alone import execute_alone
from tests.conftest import source
from tests.launch.classes import write_classes, write_config
from trainer.backbones import EmbedderSettings
from trainer.checkpoint import Folder
from trainer.replay import wgan_training
from trainer.replay.wgan_folder import Wgans
from trainer.replay.wgan_settings import WganSettings
from trainer.replay.wgan_updates import WganUpdates

WGAN = {
    "noise": 4,
    "width": 16,
    "epochs": 6,
    "batch": 16,
    "learning_rate": 0.001,
    "critic_updates": 2,
    "checkpoint_every": 5,
    "watch_every": 10,
    "least_variance": 0.0,
}
METHODS = {"gfr": {"generator": "wgan", "wgan": WGAN}}
STEPS = 2
SHORT = {"iterations": 4, "batch": 24, "milestones": []}
HOW = Wgans(WganSettings(**WGAN))


def configured(root, methods=METHODS, **values):
    """Of short steps on images that are mirrored now and then."""
    given = {
        "benchmark": {"file": str(root / "two.json"), "steps": STEPS},
        "training": SHORT,
        "data": {"augmentation": {"flip": True}},
        **values,
    }
    return load_config(write_config(root, methods, **given))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_classes(tmp_path_factory.mktemp("wgan"))
    two = class_incremental(ShardDataset.open(root / "d"), STEPS - 1)
    write_benchmark(two, root / "two.json")
    return root


@pytest.fixture(scope="module")
def seen():
    """What generators were trained on."""
    return []


@pytest.fixture(scope="module")
def finished(root, seen):
    training = wgan_training.WganSpec.begun

    def begun(self, seed):
        seen.append(self)
        return training(self, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wgan_training.WganSpec, "begun", begun)
        execute_alone(configured(root), root / "run")
    return root


def of_step(run, step):
    return run / f"chains/gfr/seed-0/steps/{step}"


def generator(run, step):
    return Folder.at(of_step(run, step) / "generator")


def test_every_step_leaves_a_generator_of_all_classes(finished, seen):
    """The last one's, too. Of each image as it is and mirrored, of the step's classes alone."""
    run = Run.open(finished / "run", configured(finished))
    assert run.benchmark.row_ends == (6, 12)
    for step, rows in enumerate(run.benchmark.row_ends):
        networks = HOW.networks(generator(finished / "run", step))
        assert networks.rows == rows
        new = np.arange(run.benchmark.rows_before(step), rows)
        found, counts = np.unique(seen[step].features.classes, return_counts=True)
        assert found.tolist() == new.tolist()
        assert set(counts.tolist()) == {2 * 6}
        before = seen[step].before
        assert (before is None) == (step == 0)
        assert before is None or before.rows == new[0]
        left = {path.name for path in of_step(finished / "run", step).iterdir()}
        assert not {"generator.part", "generator-divergences.json"} & left
        assert not [*of_step(finished / "run", step).glob("phases/generator/checkpoints/*")]


def test_its_progress_is_a_trainings(finished):
    lines = (finished / "run/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    own = [r for r in records if r["phase"].endswith("/train-generator")]
    by_phase = {r["phase"]: r for r in own}
    assert len(by_phase) == STEPS
    every = phases(Run.open(finished / "run", configured(finished)))
    planned = {phase.name: phase.iterations for phase in every}
    for name, last in by_phase.items():
        assert last["iteration"] == last["of"] == planned[name]
        assert last["images_per_second"] > 0


def test_what_decides_a_generator(finished):
    """Its settings, not how often it is saved; the step's model, and the generator before."""

    def fingerprints(**changed):
        methods = {"gfr": {"generator": "wgan", "wgan": {**WGAN, **changed}}}
        run = Run.open(finished / "run", configured(finished, methods))
        return {phase.name: phase.fingerprint for phase in phases(run)}

    usual = fingerprints()
    assert fingerprints(checkpoint_every=9) == usual
    other = fingerprints(alignment=0.5)
    differ = {name.split("/", 2)[2] for name in usual if usual[name] != other[name]}
    assert {"step-0/train", "step-0/evaluate"} & differ == set()
    assert {"step-0/train-generator", "step-1/train", "step-1/train-generator"} <= differ


def test_stopped_within_and_gone_on_with_is_the_same(finished, tmp_path, monkeypatch):
    """In the units of features, and twice in the training of the first generator."""
    step, mapped, stopped = WganUpdates.step, InProcess.map, []

    def stopping(self, stop=False):
        if self.iteration in (3, 11) and self.iteration not in stopped:
            stopped.append(self.iteration)
            raise KeyboardInterrupt
        return step(self, stop)

    def halved(self, unit, calls):
        if unit.__name__ == "write_features" and "units" not in stopped:
            stopped.append("units")
            mapped(self, unit, calls[:1])
            raise Preempted("a CPU phase")
        return mapped(self, unit, calls)

    monkeypatch.setattr(WganUpdates, "step", stopping)
    monkeypatch.setattr(InProcess, "map", halved)
    config = configured(finished)
    ends = []
    while not ends or ends[-1] is not None:
        try:
            execute_alone(config, tmp_path / "run")
            ends.append(None)
        except (KeyboardInterrupt, Preempted, InputError) as stop:
            ends.append(type(stop).__name__)
    assert stopped == ["units", 3, 11] and len(ends) == 4
    for number in range(STEPS):
        ours, theirs = (generator(run, number) for run in (tmp_path / "run", finished / "run"))
        ours.verify()
        assert ours.hashes == theirs.hashes


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ({}, False),
        ({"activation": "relu"}, True),
        ({"projection": "none", "dimension": 2048}, True),
        ({"projection": "none", "dimension": 2048, "last_relu": False}, False),
        ({"projection": "none", "dimension": 2048, "activation": "cosine"}, False),
    ],
)
def test_features_behind_a_relu_are_generated_behind_one(network, expected):
    assert behind_relu(EmbedderSettings(**network)) == expected


def test_a_run_that_continues_another_goes_on_from_its_generator(tmp_path):
    """Its classes are in no dataset here. With class means as input, which grow with them."""
    drawn = {"train_identities": 6, "test_identities": 4, "pairs": 8, "seen_identities": 2}
    every = source(24, 4)
    write_dataset(every[:48], tmp_path / "d1", {})
    write_dataset(every[48:], tmp_path / "d2", {})
    wgan = {**WGAN, "class_input": "mean", "epochs": 2}
    methods = {"gfr": {"generator": "wgan", "wgan": wgan}}
    common = {"benchmark": {"steps": 1, **drawn}}
    first = configured(tmp_path, methods, dataset=str(tmp_path / "d1"), **common)
    execute_alone(first, tmp_path / "one")
    again = {"dataset": str(tmp_path / "d2"), "continues": str(tmp_path / "one"), **common}
    execute_alone(configured(tmp_path, methods, **again), tmp_path / "two")
    how = Wgans(WganSettings(**wgan))
    left, carried, then = (
        how.networks(generator(tmp_path / run, step))
        for run, step in (("one", 0), ("two", 0), ("two", 1))
    )
    assert (left.rows, carried.rows, then.rows) == (6, 6, 12)
    assert torch.equal(carried.means.means, left.means.means)
    assert torch.equal(then.means.means[:6], left.means.means)
    shutil.rmtree(of_step(tmp_path / "one", 0) / "generator")
    with pytest.raises(InputError, match="no generator of features for gfr/seed-0"):
        execute_alone(configured(tmp_path, methods, **again), tmp_path / "three")


def test_the_plan_counts_a_generators_memory(root):
    config = configured(
        root,
        dataset=str(root / "no data"),
        benchmark={"steps": 2, "test_identities": 20},
        data={"image_size": [16, 16]},
    )
    plan = plan_run(config, split_of(config, 100, 1000), None)
    for step in plan.steps:
        known = step.old_identities
        layers = ((4 + known) * 16 + 16, 16 * 16 + 16, 16 * 8 + 8)
        assert step.memory["loaded for losses"] == 4 * sum(layers) * (step.step > 0)
        critic = (8 * 16 + 16, 16 * 16 + 16, 16 + 1, 16 * known)
        on_disk = 4 * sum((*layers, *critic)) * (step.step > 0)
        assert step.disk.get("loaded for losses", 0) == on_disk
