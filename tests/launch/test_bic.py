"""A whole run of BiC: who is trained on, what stage 2 finds, and stopping in it."""

import hashlib
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.joined import joined
from data_shards.writing.writer import write_dataset
from launch.config.load import load_config
from launch.inference.embed import embed
from launch.phases import bias
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.run import Chain, Run
from tests.alone import execute_alone
from tests.conftest import jpeg
from tests.launch.classes import CLASSES, write_classes
from tests.ranks import CONTEXT
from trainer.checkpoint import Folder
from trainer.decisions import Decision
from trainer.heads.collectives import Ranks
from trainer.model import Model
from trainer.training_spec import training_samples

CHAIN = Chain("bic", 0)
PER_CLASS, HELD = 4, 2


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twelve classes with six images each to train on and two to test on; half of them first."""
    return write_classes(tmp_path_factory.mktemp("bic"), tested=2, shard_samples=40)


def config(root, **method):
    usual = {"memory": {"per_class": PER_CLASS}, "hold_out": HELD / PER_CLASS}
    values = {
        "dataset": str(root / "d"),
        "benchmark": {"file": str(root / "b.json"), "steps": 3},
        "embedder": {"architecture": "small", "width": 4, "dimension": 8},
        "training": {"iterations": 25, "batch": 12, "milestones": []},
        "methods": {"bic": {**usual, **method}},
        "cluster": {"workers": 0, "actors": 1},
    }
    (root / "c.json").write_text(json.dumps(values))  # JSON is YAML
    return load_config(root / "c.json")


def hashes(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def run(root):
    """A finished run; stage 2 was found to leave every byte of the models as it was."""
    work, seen = bias.Bias.work, []

    def watched(self, phase, executor):
        model = phase.at.model.output.path
        before = hashes(model)
        said = work(self, phase, executor)
        assert hashes(model) == before
        seen.append(phase.name)
        return said

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bias.Bias, "work", watched)
        execute_alone(config(root), root / "run")
    assert seen == [f"bic/seed-0/step-{t}/bias-correction" for t in range(3)]
    return Run.open(root / "run", config(root))


def decision(run, step):
    return Folder.at(run.step_folder(CHAIN, step) / "decision").tensors("prepared")


@pytest.mark.parametrize("step", [1, 2])
def test_what_is_held_out_is_not_trained_on_and_of_every_class_alike(run, step):
    data, benchmark = run.joined_data(CHAIN, step)
    held = run.held_out(CHAIN, step, data, benchmark)
    trained = training_samples(run.training_spec(CHAIN, step))
    rows = run.benchmark.row_ends[step]
    assert np.bincount(benchmark.row_of_identity[data.identity[held]]).tolist() == [HELD] * rows
    assert not np.intersect1d(held, trained).size
    every = np.concatenate([benchmark.steps[step], benchmark.exemplars])
    assert np.array_equal(np.union1d(held, trained), np.sort(every))
    assert len(trained) == run.recipe(CHAIN, step).count(
        [len(own) for own in run.benchmark.steps], run.benchmark.row_ends, step
    )


def test_step_0_corrects_nothing_and_later_steps_keep_what_was_found(run):
    ends = run.benchmark.row_ends
    alpha, beta = decision(run, 0)["alpha"], decision(run, 0)["beta"]
    assert alpha.tolist() == [1.0] * ends[0] and beta.tolist() == [0.0] * ends[0]
    for step in (1, 2):
        found = decision(run, step)
        assert torch.equal(found["alpha"][: ends[step - 1]], alpha)
        assert torch.equal(found["beta"][: ends[step - 1]], beta)
        alpha, beta = found["alpha"], found["beta"]
        for line in (alpha, beta):
            assert len(line) == ends[step] and len(set(line[ends[step - 1] :].tolist())) == 1
        assert alpha[-1] != 1 and beta[-1] != 0


@pytest.mark.parametrize("step", [1, 2])
def test_the_numbers_are_those_that_a_separate_search_finds(run, step):
    """From the images' bytes, with another optimiser."""
    data = joined(run.dataset, ShardDataset.open(run.step_folder(CHAIN, step - 1) / "exemplars"))
    benchmark = run.benchmark.with_exemplars(data)
    held = run.held_out(CHAIN, step, data, benchmark)
    model = Model.open(run.step_folder(CHAIN, step) / "model")
    vectors = torch.from_numpy(embed(model.embedder(), data, held, run.config.data, 8)).double()
    logits = vectors @ model.frozen_rows(Ranks()).weight.detach().double().T
    labels = torch.from_numpy(benchmark.row_of_identity[data.identity[held]])
    before, old = decision(run, step - 1), run.benchmark.row_ends[step - 1]
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([line], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def loss():
        search.zero_grad()
        corrected = [logits[:, :old] * before["alpha"] + before["beta"]]
        corrected.append(line[0] * logits[:, old:] + line[1])
        every = torch.cat(corrected, dim=1)
        own = every[torch.arange(len(labels)), labels]
        value = (every.exp().sum(dim=1).log() - own).mean()
        value = value + 1e-4 / 2 * ((line[0] - 1) ** 2 + line[1] ** 2)
        value.backward()
        return value

    search.step(loss)
    found = decision(run, step)
    assert [found["alpha"][-1], found["beta"][-1]] == pytest.approx(line.tolist(), rel=1e-3)


def test_an_evaluation_goes_by_corrected_logits(run):
    """Accuracies are those of the decision's classes, which are not the largest logit's all."""
    model = Model.open(run.step_folder(CHAIN, 2) / "model")
    samples = np.concatenate(run.benchmark.classified)
    vectors = torch.from_numpy(embed(model.embedder(), run.dataset, samples, run.config.data, 8))
    decided = Decision.open(run.step_folder(CHAIN, 2) / "decision", model)
    lines = decision(run, 2)
    logits = vectors.double() @ model.frozen_rows(Ranks()).weight.detach().double().T
    expected = (logits * lines["alpha"] + lines["beta"]).argmax(dim=1)
    assert torch.equal(decided.classes(model, vectors), expected)
    labels = run.benchmark.row_of_identity[run.dataset.identity[samples]]
    found = json.loads((run.step_folder(CHAIN, 2) / "evaluation.json").read_text())
    assert found["class_accuracy"] == pytest.approx(np.mean(expected.numpy() == labels))


def killed_at(moment, configuration, out):
    """A run that dies by SIGKILL where it would call a function of stage 2."""
    setattr(bias, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    execute_alone(load_config(configuration), out)


def test_killed_in_stage_2_it_goes_on_bit_for_bit(run, root):
    """By SIGKILL before the old lines are there, and before new ones are found; and stopped before
    these are written."""
    config(root)
    last = root / "killed/chains/bic/seed-0/steps/1"
    for moment, there in (("link", "0/decision"), ("fit", "1/model")):
        process = CONTEXT.Process(target=killed_at, args=(moment, root / "c.json", root / "killed"))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert (last.parent / there).exists() and not (last / "decision").exists()
    before = (root / "killed/ledger.jsonl").read_text().splitlines()
    with pytest.MonkeyPatch.context() as patched:
        # once more, at the last moment
        patched.setattr(bias, "save_folder", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute_alone(config(root), root / "killed")
    execute_alone(config(root), root / "killed")
    after = (root / "killed/ledger.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    phases = [json.loads(line)["phase"] for line in after]
    assert len(set(phases)) == len(phases), "what was finished was done again"
    for step in range(3):
        whole = run.step_folder(CHAIN, step)
        own = root / "killed" / whole.relative_to(run.folder)
        for name in ("model", "decision"):
            assert hashes(own / name) == hashes(whole / name), (step, name)
        assert (own / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


def _interrupted(*_):
    raise KeyboardInterrupt


def test_a_run_that_continues_takes_the_lines_along(run, root):
    """New classes arrive: step 0's decision is the finished run's last one."""
    images = [
        SourceImage(jpeg(c, n), f"class-{c:02d}", "", f"{c}/{n}", "train" if n > 1 else "query")
        for c in range(CLASSES, CLASSES + 7)
        for n in range(8)
    ]
    write_dataset(images, root / "more", {})
    settings = config(root).model_dump(mode="json")
    settings["dataset"], settings["continues"] = str(root / "more"), str(run.folder)
    settings["benchmark"] = {"steps": 1, "test_identities": 4, "queries": "images"}
    (root / "more.json").write_text(json.dumps(settings))
    execute_alone(load_config(root / "more.json"), root / "continued")
    steps = root / "continued/chains/bic/seed-0/steps"
    assert hashes(steps / "0/decision") == hashes(run.step_folder(CHAIN, 2) / "decision")
    before, found = decision(run, 2), Folder.at(steps / "1/decision").tensors("prepared")
    for name in ("alpha", "beta"):
        assert len(found[name]) == CLASSES + 3
        assert torch.equal(found[name][:CLASSES], before[name])


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ({"hold_out": 0.2}, "learning step 1 of methods.bic would hold no image .* out"),
        ({"memory": {"total": CLASSES}}, "learning step 2 of methods.bic would hold no image"),
        (
            {"memory": {"per_class": 20}, "hold_out": 0.3},
            r"6 images .* has 6, so that none is left",
        ),
    ],
)
def test_a_memory_too_small_to_hold_images_out_is_refused_before_any_training(root, method, why):
    shutil.rmtree(root / "refused", ignore_errors=True)
    with pytest.raises(InputError, match=why) as refused:
        execute_alone(config(root, **method), root / "refused")
    assert "\n" not in str(refused.value)
    assert not (root / "refused/chains").exists()


def test_a_plan_refuses_it_too_and_counts_what_is_trained_on(root, run):
    good = config(root)
    steps = plan_run(good, split_of(good, None, None), None).steps
    trained = [len(training_samples(run.training_spec(CHAIN, step))) for step in (1, 2)]
    assert [step.images for step in steps[1:]] == trained
    bad = config(root, hold_out=0.2)
    with pytest.raises(InputError, match="learning step 1 of bic would hold no image"):
        plan_run(bad, split_of(bad, None, None), None)
