"""EWC and MAS in whole runs: which images, which model, what adds up, and stops between units."""

import json
import shutil

import pytest
import torch

from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.splits.benchmark_file import write_benchmark
from data_shards.splits.published_benchmarks import class_incremental
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings
from data_shards.writing.writer import write_dataset
from launch.config.load import load_config
from launch.execution.in_process import InProcess
from launch.exits import Preempted
from launch.inference.worker import ShardWorker
from launch.phases import importance
from launch.phases.planning import phases
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.run import Run
from tests.alone import execute_alone, executed_with_stops
from tests.conftest import jpeg, source
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.checkpoint import Folder
from trainer.heads.collectives import Ranks
from trainer.model import Model

CLASSES, STEPS = 8, 3
METHODS = ("finetune", "ewc", "mas")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three learning steps over half of the classes, a quarter and a quarter, in three shards."""
    root = tmp_path_factory.mktemp("importance")
    images = [
        SourceImage(jpeg(c, n), f"class-{c:02d}", "", f"{c}/{n}", "train" if n > 1 else "query")
        for n in range(8)
        for c in range(CLASSES)
    ]
    write_dataset(images, root / "d", {}, shard_samples=22)
    write_benchmark(class_incremental(ShardDataset.open(root / "d"), 2), root / "b.json")
    return root


def configured(root, **changed):
    values = {
        "dataset": str(root / "d"),
        "benchmark": {"file": str(root / "b.json"), "steps": STEPS},
        "embedder": {"architecture": "small", "width": 4, "depth": 1, "dimension": 8},
        "training": {"iterations": 8, "batch": 12, "milestones": [], "learning_rate": 0.02},
        "methods": {method: {} for method in METHODS},
        "cluster": {"workers": 0, "actors": 1},
        **changed,
    }
    (root / "c.json").write_text(json.dumps(values))  # JSON is YAML
    return load_config(root / "c.json")


@pytest.fixture(scope="module")
def finished(root):
    execute_alone(configured(root), root / "run")
    return root


def folder_of(run, method, step):
    return run / "chains" / method / "seed-0" / "steps" / str(step)


def tensors(run, method, step, file):
    return Folder.at(folder_of(run, method, step) / "importance").tensors(file)


def test_step_0_is_trained_once_for_all_methods(finished):
    lines = [json.loads(line) for line in (finished / "run/ledger.jsonl").read_text().splitlines()]
    trained = {line["phase"]: line for line in lines if line["phase"].endswith("train")}
    first = trained["finetune/seed-0/step-0/train"]
    for method in ("ewc", "mas"):
        own = trained[f"{method}/seed-0/step-0/train"]
        assert own["fingerprint"] == first["fingerprint"] and own["same_as"] == first["phase"]
        later = trained[f"{method}/seed-0/step-1/train"]
        assert later["fingerprint"] != trained["finetune/seed-0/step-1/train"]["fingerprint"]


def by_hand(run, dataset, benchmark, method, step):
    """A step's own mean in float64: of its images as they are, its classes alone, one by one."""
    model = Model.open(folder_of(run, method, step) / "model")
    network = model.embedder().double()
    first, last = benchmark.rows_before(step), benchmark.row_ends[step]
    weight = model.frozen_rows(Ranks()).weight.detach().double()[first:last]
    samples = benchmark.steps[step]
    requests = iter([Request.plain(dataset, samples)])
    ((_, images),) = ImageStream(
        dataset, requests, len(samples), PipelineSettings(), augmented=False
    )
    labels = benchmark.row_of_identity[dataset.identity[samples]] - first
    total = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for image, label in zip(images, labels.tolist(), strict=True):
        logits = weight @ network(image[None])[0]
        value = logits[label] - logits.exp().sum().log() if method == "ewc" else logits @ logits
        network.zero_grad()
        value.backward()
        for name, parameter in network.named_parameters():
            slope = parameter.grad
            total[name] += (slope**2 if method == "ewc" else slope.abs()) / len(samples)
    return total


@pytest.mark.parametrize("method", ["ewc", "mas"])
def test_importances_add_up_around_the_latest_parameters(finished, method):
    run = Run.open(finished / "run", configured(finished))
    before = {}
    for step in range(STEPS):
        own = by_hand(finished / "run", run.dataset, run.benchmark, method, step)
        found = tensors(finished / "run", method, step, "importances")
        assert found.keys() == own.keys()
        for name, total in own.items():
            expected = total + before.get(name, 0)
            scale = float(expected.max())
            torch.testing.assert_close(
                found[name].double(), expected, rtol=1e-3, atol=1e-4 * scale, msg=f"{step} {name}"
            )
        before = {name: value.double() for name, value in found.items()}
        model = Folder.at(folder_of(finished / "run", method, step) / "model").tensors("embedder")
        parameters = tensors(finished / "run", method, step, "parameters")
        assert all(torch.equal(parameters[name], model[name]) for name in parameters)


def test_each_training_reads_what_the_step_before_left(finished):
    run = Run.open(finished / "run", configured(finished))
    every = {phase.name: phase for phase in phases(run)}
    for step in range(1, STEPS):
        training = every[f"ewc/seed-0/step-{step}/train"]
        (given,) = (p for p in training.inputs if p.kind.prepares_next)
        assert given.name == f"ewc/seed-0/step-{step - 1}/importance"
    assert not [
        p for p in every.values() if p.kind.prepares_next and p.at.chain.method == "finetune"
    ]


def results(run):
    """What must not differ by a bit."""
    return {
        (method, step, file): (folder_of(run, method, step) / file).read_bytes()
        for method in ("ewc", "mas")
        for step in range(STEPS)
        for file in (
            "importance/importances.safetensors",
            "importance/parameters.safetensors",
            "model/embedder.safetensors",
            "evaluation.json",
        )
    }


def test_a_run_killed_between_units_ends_bit_for_bit_alike(finished, tmp_path, monkeypatch):
    """By an error, and by a stop, in both methods' phases; what was done is not done again."""
    (tmp_path / "d").symlink_to(finished / "d")
    shutil.copy(finished / "b.json", tmp_path / "b.json")
    unit = importance, "write_importance"
    done, ends = executed_with_stops(
        configured(tmp_path), tmp_path / "run", monkeypatch, unit, errors=(2, 6), stops=(9, 12)
    )
    assert len(ends) > 3 and {KeyboardInterrupt, Preempted} <= {*ends}
    assert max(map(done.count, done)) == 2, "only what failed in between was done a second time"
    assert len(done) - len({*done}) == 2
    left = [*(tmp_path / "run").glob("chains/*/seed-0/steps/*/importance.part")]
    assert not left
    ours, theirs = results(tmp_path / "run"), results(finished / "run")
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_no_bit_depends_on_which_worker_takes_which_unit(finished, tmp_path, monkeypatch):
    """Actors finish in any order: here, each unit is taken by a worker of its own, last first."""
    mapped = InProcess.map

    def scattered(self, unit, calls):
        if unit is not importance.write_importance:
            return mapped(self, unit, calls)
        for call in reversed(calls):
            self.close()
            mapped(self, unit, [call])
        return [None] * len(calls)

    monkeypatch.setattr(InProcess, "map", scattered)
    shutil.copytree(finished / "run", tmp_path / "run")
    config = configured(finished)
    ledger = tmp_path / "run/ledger.jsonl"
    kept = [line for line in ledger.read_text().splitlines() if "step-2/importance" not in line]
    ledger.write_text("\n".join(kept) + "\n")
    for method in ("ewc", "mas"):
        shutil.rmtree(folder_of(tmp_path / "run", method, 2) / "importance")
    execute_alone(config, tmp_path / "run")
    assert results(tmp_path / "run") == results(finished / "run")


@pytest.mark.parametrize("measure", ["empirical-fisher", "fisher", "sensitivity"])
def test_no_bit_depends_on_how_many_samples_a_unit_has(finished, tmp_path, measure):
    """One by one, in parts that do not come out even, and all at once: the same file."""
    run = Run.open(finished / "run", configured(finished))
    _, samples = importance.units(run.dataset, run.benchmark.steps[0])[0]
    rows = run.benchmark.row_of_identity[run.dataset.identity[samples]]
    model = folder_of(finished / "run", "ewc", 0) / "model"
    files = {}
    for most in (1, 5, len(samples), 1000):
        out, units = tmp_path / str(most), 0
        while not out.exists():
            # another worker each time, as an actor is another process than the last one
            worker = ShardWorker(str(finished / "d"), CacheSettings(), 1, tmp_path / "t/a/x", "0")
            given = samples, rows, range(4), measure, PipelineSettings(), most
            worker.run(importance.write_importance, out, model, *given)
            worker.close()
            units += 1
        assert units == -(-len(samples) // most)
        files[most] = out.read_bytes()
    assert len({*files.values()}) == 1
    assert not [*tmp_path.glob("*.part")]


def test_a_run_in_small_units_stops_between_them_and_ends_alike(finished, tmp_path, monkeypatch):
    (tmp_path / "d").symlink_to(finished / "d")
    shutil.copy(finished / "b.json", tmp_path / "b.json")
    monkeypatch.setattr(importance, "_PASSES", 5)
    unit = importance, "write_importance"
    done, ends = executed_with_stops(
        configured(tmp_path), tmp_path / "run", monkeypatch, unit, errors=(3,), stops=(6,)
    )
    assert {KeyboardInterrupt, Preempted} <= {*ends}
    whole = sum(
        -(-len(own) // 5)
        for samples in Run.open(finished / "run", configured(finished)).benchmark.steps
        for _, own in importance.units(ShardDataset.open(finished / "d"), samples)
    )
    assert len(done) == 2 * whole + 1, "only the part that failed was done a second time"
    ours, theirs = results(tmp_path / "run"), results(finished / "run")
    assert [key for key in ours if ours[key] != theirs[key]] == []


def test_a_damaged_image_is_passed_over(finished, tmp_path):
    """As training replaces it."""
    run = Run.open(finished / "run", configured(finished))
    shutil.copytree(finished / "d", tmp_path / "d")
    dataset = ShardDataset.open(tmp_path / "d")
    _, samples = importance.units(dataset, run.benchmark.steps[0])[0]
    place = int(dataset.offset[samples[1]]) + 5
    (tar, *_) = sorted((tmp_path / "d").rglob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[place] ^= 255
    tar.write_bytes(content)
    worker = ShardWorker(str(tmp_path / "d"), CacheSettings(), 1, tmp_path / "t/a/x.json", "0")
    rows = run.benchmark.row_of_identity[dataset.identity[samples]]
    model = folder_of(finished / "run", "ewc", 0) / "model"
    for name, kept in (("damaged", slice(None)), ("without", [0, *range(2, len(samples))])):
        given = samples[kept], rows[kept], range(4), "empirical-fisher", PipelineSettings(), 4
        while not (tmp_path / name).exists():
            worker.run(importance.write_importance, tmp_path / name, model, *given)
    worker.close()
    assert (tmp_path / "damaged").read_bytes() == (tmp_path / "without").read_bytes()
    assert importance.read_sums(tmp_path / "damaged", Model.open(model).fingerprint)[1] == (
        len(samples) - 1
    )


def test_the_plan_counts_the_penaltys_memory(root):
    config = configured(
        root,
        dataset=str(root / "no data"),
        benchmark={"steps": 2, "test_identities": 20},
        data={"image_size": [16, 16]},
    )
    plan = plan_run(config, split_of(config, 100, 1000), None)
    network = build_embedder(EmbedderSettings(width=4, depth=1, dimension=8))
    numbers = sum(p.numel() for p in network.parameters())
    for step in plan.steps:
        penalised = step.step > 0 and "finetune" not in step.methods
        assert step.memory["loaded for losses"] == 2 * 4 * numbers * penalised
        assert step.disk.get("loaded for losses", 0) == 2 * 4 * numbers * penalised


def test_a_run_that_continues_another_goes_on_from_its_importances(tmp_path):
    """And says so where that run has none: its images are not here to find them by."""
    drawn = {"train_identities": 6, "test_identities": 4, "pairs": 8, "seen_identities": 2}
    every = source(24, 4)
    write_dataset(every[:48], tmp_path / "d1", {})
    write_dataset(every[48:], tmp_path / "d2", {})
    common = {"benchmark": {"steps": 1, **drawn}, "methods": {"ewc": {}}}
    first = configured(tmp_path, dataset=str(tmp_path / "d1"), **common)
    execute_alone(first, tmp_path / "one")
    again = {"dataset": str(tmp_path / "d2"), "continues": str(tmp_path / "one"), **common}
    execute_alone(configured(tmp_path, **again), tmp_path / "two")
    left = tensors(tmp_path / "one", "ewc", 0, "importances")
    carried = tensors(tmp_path / "two", "ewc", 0, "importances")
    then = tensors(tmp_path / "two", "ewc", 1, "importances")
    assert carried.keys() == left.keys()
    assert all(torch.equal(carried[name], left[name]) for name in left)
    assert all((then[name] >= left[name]).all() for name in left)
    assert sum(float((then[name] - left[name]).sum()) for name in left) > 0
    shutil.rmtree(folder_of(tmp_path / "one", "ewc", 0) / "importance")
    with pytest.raises(InputError, match="which parameters matter to ewc/seed-0"):
        execute_alone(configured(tmp_path, **again), tmp_path / "three")
