"""Next month's identities: a run goes on from another run's last models, without its images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from data_shards.settings import InputError
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.writing.writer import write_dataset
from launch.config.load import load_config
from launch.phases.adopt import check_given
from launch.phases.planning import pending, phases
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.continuing import first_model
from launch.runs.ledger import Ledger
from launch.runs.run import Chain, Run
from tests.alone import execute_alone
from tests.conftest import source
from tests.monitoring.test_compatibility import compared
from trainer.checkpoint import Folder
from trainer.model import Model

MONTH = {"train_identities": 30, "test_identities": 20, "pairs": 40, "seen_identities": 4}
METHODS = {"fkd": {"neighbours": 5, "relaxation": 0.01}, "finetune": {}}


def month(folder, first, count):
    """A dataset of the identities from number `first` on."""
    own = source(first + count, 4)[4 * first :]
    write_dataset(own, folder, {"kind": "blocks"}, shard_samples=50)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run over the first month's 60 identities."""
    folder = tmp_path_factory.mktemp("months")
    config = configured(folder, month(folder / "data-1", 0, 60), benchmark={"steps": 2, **MONTH})
    execute_alone(config, folder / "month-1")
    return folder


def configured(folder, dataset, **others):
    values = {
        "dataset": str(dataset),
        "methods": METHODS,
        "benchmark": {"steps": 1, **MONTH},
        "embedder": {"width": 4, "dimension": 8},
        "training": {"iterations": 5, "batch": 20},
        "cluster": {"workers": 1, "actors": 1},
        **others,
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    return load_config(folder / "c.yaml")


def continued(folder, dataset, **others):
    return configured(folder, dataset, **{"continues": str(folder / "month-1"), **others})


def last_model(folder, method):
    return Model.open(folder / "month-1" / "chains" / method / "seed-0" / "steps" / "1" / "model")


def test_new_identities_follow_the_known_ones(first):
    """And 10 of the 60 that are shown again are neither learned again nor tested on."""
    out = first / "month-2"
    config = continued(first, month(first / "data-2", 50, 60))
    execute_alone(config, out)
    run = Run.open(out, config)
    assert [p.kind.name for p in phases(run) if p.at.chain.method == "fkd"] == [
        *("adopt", "evaluate", "neighbours", "train", "evaluate")
    ]
    assert run.benchmark.row_ends == (30, 60)
    before = last_model(first, "fkd").names()
    model = Model.open(run.step_folder(Chain("fkd", 0), 1) / "model")
    assert model.names()[:30] == before
    assert len(set(model.names())) == model.rows == 60
    again = {f"id-{i}" for i in range(50, 60)} & set(before)
    assert again
    names = run.dataset.names[run.dataset.identity]
    asked = np.concatenate([run.benchmark.query, run.benchmark.gallery, run.benchmark.steps[1]])
    assert not again & set(names[asked])
    assert set(names[run.benchmark.steps[0]]) == again
    for method in METHODS:
        taken = Model.open(run.step_folder(Chain(method, 0), 0) / "model")
        assert taken.fingerprint == last_model(first, method).fingerprint


def test_the_months_that_follow_do_not_need_those_before(first, tmp_path):
    """The third month, and a second one whose first is gone meanwhile."""
    (tmp_path / "month-1").symlink_to(first / "month-1")
    config = continued(tmp_path, month(tmp_path / "data-2", 60, 50))
    execute_alone(config, tmp_path / "month-2")
    (tmp_path / "month-1").unlink()
    run = Run.open(tmp_path / "month-2", config)
    assert pending(phases(run), Ledger.open(tmp_path / "month-2" / "ledger.jsonl")) == []
    third = month(tmp_path / "data-3", 110, 50)
    config = continued(tmp_path, third, continues=str(tmp_path / "month-2"))
    execute_alone(config, tmp_path / "month-3")
    model = Model.open(tmp_path / "month-3" / "chains" / "fkd" / "seed-0" / "steps" / "1" / "model")
    assert model.rows == 90
    found = json.loads((tmp_path / "month-3" / "ledger.jsonl").read_text().splitlines()[0])
    assert found["kind"] == "adopt"


def test_workers_elsewhere_need_not_find_the_run_that_is_continued(first, tmp_path, monkeypatch):
    """A relative path means nothing in the folder that Ray's workers are in."""
    monkeypatch.chdir(first)
    dataset = month(tmp_path / "data-2", 60, 60)
    config = continued(tmp_path, dataset, continues="month-1")
    out = tmp_path / "month-2"
    names = Run.open(out, config).benchmark.names.tolist()
    own = Path("chains/fkd/seed-0/steps")
    shutil.copytree(first / "month-1" / own / "1" / "model", out / own / "0" / "model")
    monkeypatch.chdir(tmp_path)
    assert Run.open(out, config).benchmark.names.tolist() == names


def test_models_that_know_different_identities_are_not_continued_together(first, tmp_path):
    shutil.copytree(first / "month-1", tmp_path / "month-1")
    theirs = tmp_path / "month-1" / "chains" / "fkd" / "seed-0" / "steps"
    shutil.rmtree(theirs / "1" / "model")
    shutil.copytree(theirs / "0" / "model", theirs / "1" / "model")
    config = continued(tmp_path, month(tmp_path / "data-2", 60, 60))
    with pytest.raises(InputError, match="know different identities: continue fkd/seed-0 in"):
        check_given(Run.open(tmp_path / "run", config))


def test_what_a_gate_withheld_is_not_continued(first, tmp_path):
    """But the paragon, of which nothing is asked, is."""
    out = shutil.copytree(first / "month-1", tmp_path / "month-1")
    values = yaml.safe_load((out / "run.yaml").read_text())
    values["evaluation"]["compatibility"] = {"gate": True, "paragon": "finetune", "at": ["top1"]}
    (out / "run.yaml").write_text(yaml.safe_dump(values))
    config = continued(tmp_path, first / "data-1")
    verdict = out / "chains" / "fkd" / "seed-0" / "steps" / "1" / "compatibility.json"
    for holds in (None, False, True):
        if holds is not None:
            verdict.write_text(json.dumps({"holds": holds, "against": [compared(0, 0)]}))
        assert first_model(config, tmp_path / "run", "finetune/seed-0").exists()
        if holds:
            assert first_model(config, tmp_path / "run", "fkd/seed-0").exists()
            continue
        with pytest.raises(InputError, match="has not published fkd/seed-0/step-1"):
            first_model(config, tmp_path / "run", "fkd/seed-0")


def test_a_continued_step_equals_that_step_of_a_run_over_both_months(first, tmp_path):
    """With the same images, order and seed, a run in two parts trains as one run does."""
    both, names = tmp_path / "both", [f"id-{i}" for i in range(36)]
    (tmp_path / "all.json").write_text(listed(names[:18], names[18:]))
    (tmp_path / "1.json").write_text(listed(names[:18]))
    (tmp_path / "2.json").write_text(listed(names[18:]))
    write_dataset(source(36, 4), both, {"kind": "blocks"}, shard_samples=50)

    def ran(name, file, steps, **others):
        benchmark = {"file": str(tmp_path / file), "steps": steps}
        config = configured(tmp_path, both, benchmark=benchmark, **others)
        execute_alone(config, tmp_path / name)

    ran("whole", "all.json", 2)
    ran("month-1", "1.json", 1)
    ran("month-2", "2.json", 1, continues=str(tmp_path / "month-1"))
    for method in METHODS:
        part = f"chains/{method}/seed-0/steps/1/model"
        one, two = (Folder.at(tmp_path / run / part) for run in ("whole", "month-2"))
        for name in ("embedder", "rows-00000-of-00001", "names"):
            tensors = two.tensors(name)
            for key, tensor in one.tensors(name).items():
                assert torch.equal(tensor, tensors[key]), (method, name, key)


def listed(*steps, **others):
    """A benchmark file."""
    return json.dumps({"benchmark": "of this test", "steps": steps, **others})


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"continues": "nowhere"}, "nowhere is no run folder"),
        ({"seeds": [0, 1]}, "has no finetune/seed-1, only finetune/seed-0, fkd/seed-0"),
        ({"embedder": {"width": 4, "dimension": 6}}, "embedder.dimension .was 8, now 6"),
        ({"classifier": {"margin": {"kind": "cosface"}}}, "finetune.*differs in classifier"),
        ({"methods": {"finetune": {}, "joint": {}}}, "has no joint/seed-0"),
        ({"benchmark": {**MONTH, "steps": 1, "train_identities": 41}}, "only 40 identities"),
    ],
)
def test_what_cannot_go_on_is_refused(first, tmp_path, others, words):
    config = continued(first, month(tmp_path / "data", 60, 60), **others)
    with pytest.raises(InputError, match=words):
        execute_alone(config, tmp_path / "run")


def test_a_run_that_was_not_finished_is_refused(first, tmp_path):
    config = load_config(first / "month-1" / "run.yaml", ["seeds=[1]"])
    out = tmp_path / "month-1"
    out.mkdir()
    (out / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    config = continued(tmp_path, first / "data-1", seeds=[1])
    with pytest.raises(InputError, match="has not finished finetune/seed-1/step-1: run it to"):
        Run.open(tmp_path / "run", config)


def test_a_benchmark_file_may_not_learn_or_test_whom_the_model_knows(small, tmp_path):
    known = ["id-1", "id-2"]
    for text, words in (
        (listed(["id-1", "id-5"]), "trains on 'id-1'"),
        (listed(["id-5"], query=["2_0"], gallery=["2_1"]), "tests on 'id-2'"),
    ):
        path = tmp_path / "b.json"
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            build_benchmark(small, BenchmarkSettings(file=path, steps=1), known)


def test_joint_training_wants_images_of_everybody(first, tmp_path):
    """It trains on all identities so far, and a new month's dataset shows the new ones alone."""
    out = tmp_path / "month-1"
    methods = {"joint": {}}
    config = configured(tmp_path, first / "data-1", methods=methods)
    execute_alone(config, out)
    new = month(tmp_path / "data-2", 60, 60)
    config = continued(tmp_path, new, methods=methods)
    with pytest.raises(InputError, match="has no image of 30 of the 30 that"):
        check_given(Run.open(tmp_path / "run", config))
    whole = month(tmp_path / "data", 0, 110)
    config = continued(tmp_path, whole, methods=methods)
    check_given(Run.open(tmp_path / "run", config))


def test_a_month_without_test_identities_is_measured_by_test_sets(first, tmp_path, sets):
    new = month(tmp_path / "data-2", 60, 20)
    benchmark = {"steps": 1, "test_identities": 0}
    with pytest.raises(InputError, match="leaves nothing to evaluate on"):
        continued(first, new, benchmark=benchmark)
    tests = {"own": {"dataset": str(sets / "mates"), "protocol": "identification"}}
    config = continued(first, new, benchmark=benchmark, evaluation={"tests": tests})
    execute_alone(config, tmp_path / "run")
    found = tmp_path / "run" / "chains" / "fkd" / "seed-0" / "steps" / "1" / "evaluation.json"
    assert set(json.loads(found.read_text())["tests"]) == {"own"}


def test_a_plan_begins_after_the_known_identities(first, tmp_path):
    """Whether the dataset is at hand or only its size is known."""
    new = month(tmp_path / "data-2", 60, 60)
    config = continued(first, new, data={"image_size": [16, 16]})
    for counts in ((None, None), (60, 240)):
        planned = plan_run(config, split_of(config, *counts), None)
        (step,) = (step for step in planned.steps if "fkd" in step.methods)
        assert (step.step, step.old_identities, step.new_identities) == (1, 30, 30)
        assert step.images == 120


def test_known_identities_are_found_by_name_in_any_order(small):
    known = [f"id-{i}" for i in (7, 99, 3)]
    settings = BenchmarkSettings(steps=2, test_identities=22, pairs=40, seen_identities=2)
    found = build_benchmark(small, settings, known)
    plain = build_benchmark(small, settings)
    assert found.row_ends == (3, 21, 39)
    assert found.names[:3].tolist() == known
    ids = {name: i for i, name in enumerate(small.names.tolist())}
    assert found.row_of_identity[ids["id-7"]] == 0
    assert found.row_of_identity[ids["id-3"]] == 2
    assert sorted(found.names[3:]) == sorted(small.names[found.row_of_identity >= 3])
    shown = set(small.identity[np.concatenate([found.steps[0], found.seen_query])].tolist())
    assert shown == {ids["id-7"], ids["id-3"]}
    assert len(found.seen_query) == 2
    assert plain.row_ends == (19, 38)
