"""Compatibility in a run: its phase, the gate, and the command that compares two models."""

import json

import numpy as np
import pytest
import yaml
from rich.console import Console

from data_shards.settings import InputError
from launch.config.load import load_config
from launch.exits import Withheld
from launch.models.compare import TwoModelTest, compatibility
from launch.phases.compatibility import trials_of
from launch.phases.planning import pending, phases
from launch.phases.publishing import update_published
from launch.runs.ledger import Ledger
from launch.runs.run import Chain, Run
from monitoring.records import read_jsonl
from tests.alone import execute_alone
from tests.commands import perennial
from trainer.arrays import read_embeddings, write_embeddings
from trainer.evaluation.compatibility.comparison import compare
from trainer.evaluation.compatibility.vectors import Embedded
from trainer.model import Model

CONSOLE = Console(quiet=True)
POINTS = ["top1", "tar@0.1"]


@pytest.fixture(scope="module")
def folder(small_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compatibility")
    values = {
        "dataset": str(small_folder),
        "methods": {"bct": {}, "joint": {}},
        "benchmark": {
            "steps": 3,
            "train_identities": 36,
            "test_identities": 24,
            "pairs": 40,
            "seen_identities": 6,
        },
        "embedder": {"width": 4, "dimension": 8},
        "training": {"iterations": 8, "batch": 20, "learning_rate": 0.001},
        "evaluation": {
            "compatibility": {"at": POINTS, "paragon": "joint", "resamples": 100, "gate": True}
        },
        "cluster": {"workers": 0, "actors": 2},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def refused(folder):
    """Why the finished run was not published in full."""
    with pytest.raises(Withheld) as withheld:
        execute_alone(load_config(folder / "c.yaml"), folder / "run")
    return str(withheld.value).splitlines()


@pytest.fixture(scope="module")
def run(folder, refused):
    return Run.open(folder / "run", load_config(folder / "c.yaml"))


def found(run, method, step):
    return json.loads((run.step_folder(Chain(method, 0), step) / "compatibility.json").read_text())


def stored(run, method, step):
    folder = run.step_folder(Chain(method, 0), step)
    return Embedded(*read_embeddings(folder / "embeddings.safetensors"))


def test_every_step_is_compared_with_every_one_before_it(run):
    names = [p.name for p in phases(run) if p.kind.name == "compatibility"]
    assert names == [f"{m}/seed-0/step-{t}/compatibility" for m in ("joint", "bct") for t in (1, 2)]
    for step in (1, 2):
        against = found(run, "bct", step)["against"]
        assert [one["step"] for one in against] == list(range(step))
        assert [point["point"] for point in against[0]["points"]] == POINTS


def test_the_phase_finds_what_the_stored_embeddings_say(run):
    settings = run.config.evaluation.compatibility
    one = found(run, "bct", 2)["against"][1]
    direct = compare(
        trials_of(run),
        stored(run, "bct", 1),
        stored(run, "bct", 2),
        stored(run, "joint", 2),
        settings,
        run.dataset.names,
    )
    assert {**direct, "step": 1} == one
    assert one["backfill"][0]["point"] == "top1"
    assert one["points"][0]["paragon"] == pytest.approx(
        json.loads((run.step_folder(Chain("joint", 0), 2) / "evaluation.json").read_text())["top1"]
    )


def test_what_is_not_compatible_is_withheld_and_said(run, refused):
    withheld = [f"bct/seed-0/step-{t}" for t in (1, 2) if not found(run, "bct", t)["holds"]]
    assert withheld, "this run is meant to fail its gate"
    assert [line.split(" is not published: ")[0] for line in refused] == withheld
    told = [
        e["message"] for e in read_jsonl(run.folder / "events.jsonl") if e["event"] == "withheld"
    ]
    assert told == refused
    published = sorted(p.relative_to(run.folder) for p in run.folder.glob("published/*/*/*"))
    kept = [0, *(t for t in (1, 2) if found(run, "bct", t)["holds"])]
    assert [str(p) for p in published] == [f"published/bct/seed-0/step-{t}" for t in kept]


def test_the_gate_follows_the_verdict_and_shares_bytes(run):
    path = run.step_folder(Chain("bct", 0), 1) / "compatibility.json"
    before, ledger = path.read_text(), Ledger.open(run.folder / "ledger.jsonl")
    target, model = run.folder / "published/bct/seed-0/step-1", path.with_name("model")
    try:
        path.write_text(json.dumps({**json.loads(before), "holds": True}))
        assert not any(
            why.startswith("bct/seed-0/step-1 ")
            for why in update_published(run, phases(run), ledger)
        )
        assert (target / "card.json").samefile(model / "card.json")
        assert {p.name for p in target.iterdir()} == {p.name for p in model.iterdir()}
        path.write_text(json.dumps({**json.loads(before), "holds": False}))
        assert any(
            why.startswith("bct/seed-0/step-1 ")
            for why in update_published(run, phases(run), ledger)
        )
        assert not target.exists() and model.exists()
    finally:
        path.write_text(before)


def test_the_same_command_again_does_nothing_and_refuses_again(run, folder, refused):
    records = (run.folder / "ledger.jsonl").read_bytes()
    with pytest.raises(Withheld) as withheld:
        execute_alone(load_config(folder / "c.yaml"), run.folder)
    assert str(withheld.value).splitlines() == refused
    assert (run.folder / "ledger.jsonl").read_bytes() == records


def test_other_operating_points_repeat_the_comparison_alone(run, folder):
    config = load_config(folder / "c.yaml", ["evaluation.compatibility.at=[map]"])
    left = pending(phases(Run.open(run.folder, config)), Ledger.open(run.folder / "ledger.jsonl"))
    assert {phase.kind.name for phase in left} == {"compatibility"}
    gateless = load_config(folder / "c.yaml", ["evaluation.compatibility.gate=false"])
    assert not pending(
        phases(Run.open(run.folder, gateless)), Ledger.open(run.folder / "ledger.jsonl")
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("paragon=nobody", "evaluation.compatibility.paragon is nobody, which is none of"),
        ("at=[tar@1e-3]", "the smallest rate that it can tell is tar@0.05"),
        ("at=[top5]", "is no operating point: write top1"),
    ],
)
def test_what_cannot_be_compared_ends_the_run_before_it_trains(folder, tmp_path, override, message):
    def attempt():
        config = load_config(folder / "c.yaml", [f"evaluation.compatibility.{override}"])
        execute_alone(config, tmp_path / "run")

    with pytest.raises(InputError, match=message) as error:
        attempt()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "chains").exists()


def command(*words):
    return perennial("compat", *words)


def test_the_command_agrees_with_the_run_and_says_so_by_its_exit_status(run, folder, tmp_path):
    new, old = (run.step_folder(Chain("bct", 0), t) / "model" for t in (2, 1))
    done = command(new, "--with", old, "--on", folder / "c.yaml", "--out", tmp_path / "c.json")
    wanted = found(run, "bct", 2)
    assert done.returncode == (0 if wanted["holds"] else 3), done.stderr
    assert "tar@0.1" in done.stdout
    points = json.loads((tmp_path / "c.json").read_text())["points"]
    for ours, theirs in zip(points, wanted["against"][1]["points"], strict=True):
        assert ours["new_old"] == theirs["new_old"] and ours["gain"] == theirs["gain"]


def test_the_command_lets_a_better_model_through_and_refuses_it_turned(run, folder):
    """A new model that puts every image where the old one has a gallery image of its identity; the
    same one in a space of its own, which is as good by itself."""
    new, old = (run.step_folder(Chain("bct", 0), t) / "model" for t in (2, 1))
    new_file, old_file = (m.with_name("embeddings.safetensors") for m in (new, old))
    before = {file: file.read_bytes() for file in (new_file, old_file)}
    samples, _ = read_embeddings(old_file)
    random = np.random.default_rng(0)
    weak = random.normal(size=(len(samples), 8)).astype(np.float32)
    identity, gallery = run.dataset.identity[samples], trials_of(run).search.gallery
    at = {i: v for i, v, s in zip(identity, weak, samples, strict=True) if s in gallery}
    better = np.stack([at.get(i, v) for i, v in zip(identity, weak, strict=True)])
    turned = better @ np.linalg.qr(random.normal(size=(8, 8)))[0].astype(np.float32)
    asked = ("--on", folder / "c.yaml", "--at", "top1", "--json")
    try:
        write_embeddings(old_file, samples, weak, Model.open(old).fingerprint)
        for made, status in ((better, 0), (turned, 3)):
            write_embeddings(new_file, samples, made, Model.open(new).fingerprint)
            done = command(new, "--with", old, *asked)
            assert done.returncode == status, done.stdout[:900] + done.stderr
            (top1,) = json.loads(done.stdout)["points"]
            assert top1["new_new"] == 1 and (top1["new_old"] == 1) == (status == 0)
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def test_models_are_embedded_anew_where_nothing_is_kept(run, folder, tmp_path):
    alone = tmp_path / "model"
    alone.mkdir()
    for file in (run.step_folder(Chain("bct", 0), 2) / "model").iterdir():
        (alone / file.name).write_bytes(file.read_bytes())
    old = run.step_folder(Chain("bct", 0), 1) / "model"
    ours = compatibility(alone, old, str(folder / "c.yaml"), None, {}, None, CONSOLE)["points"]
    wanted = found(run, "bct", 2)["against"][1]["points"]
    ours = [point["new_old"] for point in ours]
    np.testing.assert_allclose(ours, [point["new_old"] for point in wanted], atol=0.02)


def test_only_embeddings_of_this_model_and_these_images_are_used(run, folder):
    model = Model.open(run.step_folder(Chain("bct", 0), 1) / "model")
    beside = model.folder.parent / "embeddings.safetensors"
    before, test = beside.read_bytes(), TwoModelTest.open(str(folder / "c.yaml"), None)
    wanted = stored(run, "bct", 1).vectors

    def embedded(test):
        """Whether images were embedded, and the vectors."""
        told = []
        vectors = test.embedded(model, lambda **done: told.append(done)).vectors
        return bool(told), vectors

    anew, vectors = embedded(test)
    assert not anew and np.array_equal(vectors, wanted)
    assert embedded(TwoModelTest.open(str(folder / "c.yaml"), (24, 24)))[0]
    try:
        samples, vectors = read_embeddings(beside)
        write_embeddings(beside, samples, vectors + 1, "another model")
        anew, vectors = embedded(test)
        of = np.isin(samples, test.trials.samples)
        assert anew and np.allclose(vectors, wanted[of], atol=1e-4)
    finally:
        beside.write_bytes(before)


def test_bad_input_is_one_line_and_exit_2(run, folder, small_folder):
    model, config = run.step_folder(Chain("bct", 0), 1) / "model", str(folder / "c.yaml")
    done = command(model, "--with", model, "--on", config, "--at", "tar@1e-4")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "it can tell is tar@0.05" in done.stderr
    with pytest.raises(InputError, match="no images with roles query and gallery"):
        compatibility(model, model, str(small_folder), None, {}, None, CONSOLE)
    with pytest.raises(InputError, match=r"--confidence: .* less than 1"):
        compatibility(model, model, config, None, {"confidence": 2.0}, None, CONSOLE)
    with pytest.raises(InputError, match="--at: 'top9' is no operating point"):
        compatibility(model, model, config, None, {"at": ("top9",)}, None, CONSOLE)
    with pytest.raises(InputError, match=str(folder)):
        compatibility(model, folder, config, None, {}, None, CONSOLE)
