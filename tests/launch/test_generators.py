"""GFR in whole runs: which images, which model, what stays, and stops between units."""

import json
import shutil

import numpy as np
import pytest
import torch

from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings
from data_shards.writing.writer import write_dataset
from launch.config.load import load_config
from launch.exits import Preempted
from launch.inference.worker import ShardWorker
from launch.phases import exemplars, gaussians
from launch.phases.planning import phases
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.run import Run
from monitoring.memory import memory
from tests.alone import execute_alone, executed_with_stops
from tests.conftest import source
from tests.launch.classes import CLASSES, write_classes, write_config
from tests.trainer.test_drift import by_loops as moved_by_loops
from tests.trainer.test_gaussian import by_loops
from trainer.arrays import read_arrays
from trainer.checkpoint import Folder
from trainer.model import Model

METHODS = {
    "finetune": {"over": "all"},
    "gfr": {},
    "shared": {"kind": "gfr", "covariance": "shared", "keep": "mas", "drift": "compensated"},
}
STEPS, DIMENSION = 3, 4
VALUES = {
    "embedder": {"architecture": "small", "width": 4, "depth": 1, "dimension": DIMENSION},
    "training": {"iterations": 6, "batch": 12, "milestones": [], "learning_rate": 0.01},
}


def configured(root, methods=METHODS, **changed):
    return load_config(write_config(root, methods, **{**VALUES, **changed}))


@pytest.fixture(scope="module", autouse=True)
def several_units():
    """Two or three classes a unit of work."""
    before, exemplars._UNIT = exemplars._UNIT, 12
    yield
    exemplars._UNIT = before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = write_classes(tmp_path_factory.mktemp("generators"))
    execute_alone(configured(root), root / "run")
    return root


def folder_of(run, method, step):
    return run / "chains" / method / "seed-0" / "steps" / str(step)


def state(run, method, step):
    return Folder.at(folder_of(run, method, step) / "generator").tensors("generator")


def embedded(run, step, method="gfr", model=None):
    """The embeddings of a step's images as they are, one by one, by its finished model or another
    step's."""
    step_of_model = step if model is None else model
    network = Model.open(folder_of(run.folder, method, step_of_model) / "model").embedder()
    samples = run.benchmark.steps[step]
    requests = iter([Request.plain(run.dataset, samples)])
    stream = ImageStream(run.dataset, requests, len(samples), PipelineSettings(), augmented=False)
    ((_, images),) = stream
    vectors = torch.cat([network(image[None]) for image in images]).detach().numpy()
    return vectors, run.benchmark.row_of_identity[run.dataset.identity[samples]]


def test_distributions_are_of_the_steps_own_images_by_its_finished_model(finished):
    run = Run.open(finished / "run", configured(finished))
    for step in range(STEPS):
        vectors, rows = embedded(run, step)
        first, last = run.benchmark.rows_before(step), run.benchmark.row_ends[step]
        assert sorted({*rows.tolist()}) == [*range(first, last)]
        found = state(finished / "run", "gfr", step)
        assert {name: len(own) for name, own in found.items()} == {"means": last, "factors": last}
        means, covariances = by_loops(vectors, rows)
        for row in range(first, last):
            np.testing.assert_allclose(found["means"][row], means[row], rtol=1e-4, atol=1e-5)
            factor = np.zeros((DIMENSION, DIMENSION))
            factor[np.tril_indices(DIMENSION)] = found["factors"][row]
            expected = covariances["full"][row]
            close = {"rtol": 1e-3, "atol": 1e-4 * np.abs(expected).max()}
            np.testing.assert_allclose(factor @ factor.T, expected, **close)
        if step:
            before = state(finished / "run", "gfr", step - 1)
            assert all(torch.equal(found[name][:first], before[name]) for name in before)


def test_old_means_move_as_the_step_moved_its_own_images(finished):
    run = Run.open(finished / "run", configured(finished))
    for step in range(1, STEPS):
        before, rows = embedded(run, step, "shared", step - 1)
        after, _ = embedded(run, step, "shared")
        was = state(finished / "run", "shared", step - 1)["means"]
        found = state(finished / "run", "shared", step)["means"]
        expected = moved_by_loops(was.numpy(), before, after)
        assert np.abs(expected - was.numpy()).max() > 0.01, "nothing moved"
        np.testing.assert_allclose(found[: len(was)], expected, rtol=1e-3, atol=1e-4)
        means, _ = by_loops(after, rows)
        own = np.array([means[row] for row in range(len(was), len(found))])
        np.testing.assert_allclose(found[len(was) :], own, rtol=1e-3, atol=1e-4)


def test_each_training_reads_what_the_step_before_left(finished):
    run = Run.open(finished / "run", configured(finished))
    every = {phase.name: phase for phase in phases(run)}
    for step in range(1, STEPS):
        training = every[f"gfr/seed-0/step-{step}/train"]
        (given,) = (p for p in training.inputs if p.kind.prepares_next)
        assert given.name == f"gfr/seed-0/step-{step - 1}/gaussians"
        # MAS's importances come beside it
        both = [p for p in every[f"shared/seed-0/step-{step}/train"].inputs if p.kind.prepares_next]
        assert len(both) == 2
    made = {p.at.chain.method for p in every.values() if p.name.endswith("/gaussians")}
    assert made == {"gfr", "shared"}


def test_step_0_is_trained_once_for_all_methods(finished):
    lines = [json.loads(line) for line in (finished / "run/ledger.jsonl").read_text().splitlines()]
    own = {line["phase"]: line for line in lines}
    for method in ("gfr", "shared"):
        assert own[f"{method}/seed-0/step-0/train"]["same_as"] == "finetune/seed-0/step-0/train"


def test_the_memory_counts_a_generators_bytes(finished):
    found, pairs = memory(finished / "run"), DIMENSION * (DIMENSION + 1) // 2
    assert found["gfr", 2]["generator_bytes"] == 4 * CLASSES * (DIMENSION + pairs)
    assert found["shared", 2]["generator_bytes"] == 4 * CLASSES * DIMENSION + 8 * (pairs + 1)
    assert "generator_bytes" not in found["finetune", 2]


def results(run):
    """What must not differ by a bit."""
    return {
        (method, step, file): (folder_of(run, method, step) / file).read_bytes()
        for method in ("gfr", "shared")
        for step in range(STEPS)
        for file in ("generator/generator.safetensors", "model/embedder.safetensors")
    }


def test_a_run_stopped_between_units_ends_bit_for_bit_alike(finished, tmp_path, monkeypatch):
    """By an error, and by a stop; what was done is not done again."""
    (tmp_path / "d").symlink_to(finished / "d")
    shutil.copy(finished / "b.json", tmp_path / "b.json")
    unit = gaussians, "write_moments"
    done, ends = executed_with_stops(
        configured(tmp_path), tmp_path / "run", monkeypatch, unit, errors=(2, 6), stops=(9,)
    )
    assert {KeyboardInterrupt, Preempted} <= {*ends}
    assert len(done) - len({*done}) == 2, "only what failed in between was done a second time"
    assert not [*(tmp_path / "run").glob("chains/*/seed-0/steps/*/generator.part")]
    ours, theirs = results(tmp_path / "run"), results(finished / "run")
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_damaged_images_are_passed_over(finished, tmp_path):
    run = Run.open(finished / "run", configured(finished))
    shutil.copytree(finished / "d", tmp_path / "d")
    dataset = ShardDataset.open(tmp_path / "d")
    samples, rows = next(exemplars.whole_identities(run, 0))
    tars = sorted((tmp_path / "d").rglob("*.tar"))
    tar = tars[int(dataset.shard[samples[1]])]
    content = bytearray(tar.read_bytes())
    content[int(dataset.offset[samples[1]]) + 5] ^= 255
    tar.write_bytes(content)
    worker = ShardWorker(str(tmp_path / "d"), CacheSettings(), 1, tmp_path / "t/a/x.json", "0")
    model = folder_of(finished / "run", "gfr", 0) / "model"
    for name, kept in (
        ("damaged", slice(None)),
        ("without", [0, *range(2, len(samples))]),
        ("none", [1]),
    ):
        given = samples[kept], rows[kept], "full", PipelineSettings(), 8
        worker.run(gaussians.write_moments, tmp_path / name, model, None, *given)
    worker.close()
    assert (tmp_path / "damaged").read_bytes() == (tmp_path / "without").read_bytes()
    assert len(read_arrays(tmp_path / "none")["rows"]) == 0


def test_the_plan_counts_a_generators_memory(tmp_path):
    changed = {
        "dataset": str(tmp_path / "no data"),
        "benchmark": {"steps": 2, "test_identities": 20},
        "data": {"image_size": [16, 16]},
    }
    methods = {"gfr": {}, "shared": {"kind": "gfr", "covariance": "shared"}}
    config = configured(tmp_path, methods, **changed)
    for step in plan_run(config, split_of(config, 100, 1000), None).steps:
        factors = {"gfr": step.old_identities, "shared": 1}[step.methods[0]] if step.step else 0
        numbers = step.old_identities * DIMENSION + factors * DIMENSION**2
        assert step.memory["loaded for losses"] == 4 * numbers


def test_a_run_that_continues_another_goes_on_from_its_generator(tmp_path):
    """And says so where that run has none: its images are not here to make one by."""
    drawn = {"train_identities": 6, "test_identities": 4, "pairs": 8, "seen_identities": 2}
    every = source(24, 4)
    write_dataset(every[:48], tmp_path / "d1", {})
    write_dataset(every[48:], tmp_path / "d2", {})
    common = {"benchmark": {"steps": 1, **drawn}}
    methods = {"gfr": {}}
    one = configured(tmp_path, methods, dataset=str(tmp_path / "d1"), **common)
    execute_alone(one, tmp_path / "one")
    again = {"dataset": str(tmp_path / "d2"), "continues": str(tmp_path / "one"), **common}
    execute_alone(configured(tmp_path, methods, **again), tmp_path / "two")
    left, carried, then = (
        state(tmp_path / run, "gfr", step) for run, step in (("one", 0), ("two", 0), ("two", 1))
    )
    known = len(left["means"])
    assert all(torch.equal(carried[name], left[name]) for name in left)
    assert all(torch.equal(then[name][:known], left[name]) for name in left)
    assert len(then["means"]) > known
    other = {"gfr": {"covariance": "shared"}}
    with pytest.raises(InputError, match="holds another generator than the method asks for"):
        execute_alone(configured(tmp_path, other, **again), tmp_path / "three")
    shutil.rmtree(folder_of(tmp_path / "one", "gfr", 0) / "generator")
    with pytest.raises(InputError, match="has no generator of features for gfr/seed-0"):
        execute_alone(configured(tmp_path, methods, **again), tmp_path / "four")
