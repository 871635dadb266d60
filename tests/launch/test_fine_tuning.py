"""Balanced fine-tuning: of the step's model, on the memory alone, by the method's own losses."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from launch.config.load import load_config
from launch.phases.planning import phases
from launch.planning.plan import plan_run
from launch.planning.split import split_of
from launch.runs.run import Chain, Run
from tests.alone import execute_alone
from tests.kill_at import killed_at
from tests.launch.classes import write_classes, write_config
from trainer.heads.collectives import Ranks
from trainer.methods.fine_tuning import FineTuning
from trainer.methods.lucir import LUCIR
from trainer.model import Model
from trainer.row_layout import RowBlock
from trainer.state import build_rows
from trainer.stepper import Stepper

MEMORY, BATCH = {"per_class": 3}, 24
HOW = {"epochs": 4, "learning_rate": 0.02, "milestones": [2]}
CHAIN = Chain("tuned", 0)
TRAINING = {"iterations": 6, "batch": BATCH, "milestones": [], "checkpoint_every": 2}


def configured(root, **changed):
    methods = {
        "plain": {"kind": "lucir", "memory": MEMORY},
        "tuned": {"kind": "lucir", "memory": MEMORY, "fine_tune": {**HOW, **changed}},
    }
    return load_config(write_config(root, methods, training=TRAINING))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("fine_tuning"))


@pytest.fixture(scope="module")
def seen():
    """Of each fine-tuning, the labels of its batches and the learning rates."""
    return {}


@pytest.fixture(scope="module")
def run(root, seen):
    iterate = Stepper.__call__

    def noted(self, batch):
        losses = iterate(self, batch)
        if self._state.origin.get("phase") == "fine-tune":
            rate = self._state.embedder_optimizer.param_groups[0]["lr"]
            own = seen.setdefault(self._state.origin["learning_step"], [])
            own.append((batch.labels.tolist(), rate, {*losses}))
        return losses

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Stepper, "__call__", noted)
        execute_alone(configured(root), root / "run")
    return Run.open(root / "run", configured(root))


def ledger(folder):
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    return {line["phase"]: line for line in map(json.loads, lines)}


def hashes(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".json"}


def models(run, step):
    folder = run.step_folder(CHAIN, step)
    return Model.open(folder / "phases/trained/model"), Model.open(folder / "model")


def test_it_goes_on_from_the_trained_model_and_replaces_it(run):
    done = ledger(run.folder)
    assert "tuned/seed-0/step-0/fine-tune" not in done, "step 0 has no old class"
    trained = done["tuned/seed-0/step-1/train"]
    assert trained["same_as"] == "plain/seed-0/step-1/train", "the main training is the same"
    chosen = done["tuned/seed-0/step-1/exemplars"]
    assert chosen["same_as"] == "plain/seed-0/step-1/exemplars", "chosen by the trained model"
    before, after = models(run, 1)
    assert before.fingerprint != after.fingerprint
    assert before.rows == after.rows == run.benchmark.row_ends[1]
    every = {phase.name: phase for phase in phases(run)}
    for reader in ("step-1/evaluate", "step-2/train", "step-2/imprint", "step-2/neighbours"):
        read = [p.name for p in every[f"tuned/seed-0/{reader}"].inputs if p.kind.makes_model]
        assert read == ["tuned/seed-0/step-1/fine-tune"], reader
    assert (
        "tuned/seed-0/step-2/train" in done and "same_as" not in done["tuned/seed-0/step-2/train"]
    )


def test_every_class_counts_alike_and_the_rate_falls(run, seen):
    """Of the exemplars that the step leaves, new classes' too; each once an epoch."""
    assert {*seen} == {1, 2}
    for step, batches in seen.items():
        classes = run.benchmark.row_ends[step]
        images = classes * MEMORY["per_class"]
        assert len(batches) == -(-HOW["epochs"] * images // BATCH)
        labels = Counter(label for own, _, _ in batches for label in own)
        assert {*labels} == {*range(classes)}
        share = len(batches) * BATCH / classes
        assert all(abs(count - share) <= MEMORY["per_class"] for count in labels.values())
        milestone = -(-HOW["milestones"][0] * images // BATCH)
        rates = [rate for _, rate, _ in batches]
        assert rates == [
            HOW["learning_rate"] / (10 if i >= milestone else 1) for i in range(len(rates))
        ]
        assert all(
            names == {"classify", "keepdirections", "setapart", "loss"} for *_, names in batches
        )


def test_nothing_learned_is_the_trained_model(root, run):
    """But for running statistics, which are of what was seen last."""
    still = configured(root, learning_rate=1e-30)
    execute_alone(still, root / "still")
    other = Run.open(root / "still", still)
    before, after = models(other, 1)
    held = [dict(m.embedder().named_parameters()) for m in (before, after)]
    assert all(torch.equal(held[0][name], held[1][name]) for name in held[0])
    rows = [m.sharded_rows(Ranks()).weight for m in (before, after)]
    assert torch.equal(*rows)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_rank_begins_with_its_own_rows(run, world):
    trained, _ = models(run, 2)
    spec = replace(run.training_spec(CHAIN, 2), begins=trained)
    whole = trained.sharded_rows(Ranks()).weight.detach()
    for rank in range(world):
        for ids in (range(trained.rows), range(5, trained.rows)):
            block = RowBlock(ids, kept=5, trained=True)
            rows = build_rows(block, spec, 0, Ranks(rank, world))
            own = [row for row in ids if row % world == rank]
            assert torch.equal(rows.weight.detach(), whole[own])


def of_fine_tuning(out, given, others):
    """Whether a call is of step 1's fine-tuning."""
    there = (out / "chains/tuned/seed-0/steps/1/exemplars").exists()
    return there and (
        given[0].phase == "fine-tune" if given else "phases" not in str(others["folder"])
    )


def test_killed_while_it_trains_and_when_it_has_it_ends_bit_for_bit_alike(root, run):
    """By SIGKILL after its second checkpoint was begun, and once its model lies there."""
    configured(root)
    for moment, number in (("save_state", 2), ("save_model", 1)):
        path, out = root / "plain-tuned.yaml", root / "killed"
        killed_at(path, out, "trainer.loop", moment, number, of_fine_tuning)
        assert "tuned/seed-0/step-1/exemplars" in ledger(root / "killed")
        assert "tuned/seed-0/step-1/fine-tune" not in ledger(root / "killed")
    before = (root / "killed/ledger.jsonl").read_text().splitlines()
    execute_alone(configured(root), root / "killed")
    after = (root / "killed/ledger.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert len(ledger(root / "killed")) == len(after), "what was finished was done again"
    for step in (1, 2):
        for name in ("model", "phases/trained/model", "exemplars"):
            whole = run.step_folder(CHAIN, step) / name
            own = root / "killed" / whole.relative_to(run.folder)
            assert hashes(own) == hashes(whole), (step, name)
    left = [*(root / "killed/chains").rglob("phases/fine-tune/checkpoints/[0-9]*")]
    assert not left


def test_a_recipe_without_a_memory_or_with_odd_milestones_is_refused():
    with pytest.raises(ValueError, match="fine-tuned on exemplars, and there is no memory"):
        LUCIR(fine_tune=FineTuning()).recipe()
    with pytest.raises(ValueError, match=r"milestones \[30\] must ascend.*epochs = 20"):
        FineTuning(milestones=(30,))


def test_the_plan_counts_its_iterations(root, run, seen):
    config = configured(root)
    steps = plan_run(config, split_of(config, None, None), None).steps
    found = {(name, s.step): s.fine_tuning for s in steps for name in s.methods}
    for step in (1, 2):
        assert found["tuned", step] == len(seen[step]) and found["plain", step] == 0
    assert found["tuned", 0] == 0
