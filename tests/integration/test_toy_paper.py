"""A new paper is a file for what it wants, one for its method, one for its phase, and two lines."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_resume import finish, kill_everything, wait_for

ROOT = Path(__file__).parents[2]
TOYS = ROOT / "tests" / "toys"
FILES = {
    "want.py": "trainer/methods/toy_want.py",
    "method.py": "trainer/methods/toy.py",
    "kind.py": "launch/phases/toy.py",
}
LINES = {
    "trainer/methods/__init__.py": (
        "from trainer.methods.toy import Toy",
        '    "toy": Toy,',
        '    "combination": Combination,',
    ),
    "launch/phases/registry.py": (
        "from launch.phases.toy import TrainToyExpert",
        "    TrainToyExpert(),",
        "    Adopt(),",
    ),
}
"""An import, and a line before another one."""
CONFIG = """
dataset: {dataset}
benchmark: {{steps: 2, train_identities: 36, test_identities: 24, pairs: 40, seen_identities: 6}}
embedder: {{architecture: small, width: 4, dimension: 8}}
training: {{iterations: 20, batch: 24, milestones: [], checkpoint_every: 5, log_every: 4}}
methods: {{toy: {{weight: 1.0, iterations: 60}}}}
cluster: {{workers: 1, actors: 1}}
"""
EXPERT = "chains/toy/seed-0/steps/1/phases/toy-expert"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """The code of this repository with the toy paper in it."""
    house = tmp_path_factory.mktemp("house")
    for package in ("untrusted", "data_shards", "trainer", "launch", "monitoring"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, house / package, ignore=ignored)
    for ours, theirs in FILES.items():
        assert not (ROOT / theirs).exists()
        shutil.copy(TOYS / ours, house / theirs)
    for file, (imported, line, before) in LINES.items():
        text = (house / file).read_text(encoding="utf-8")
        assert text.count(before + "\n") == 1
        text = text.replace(before + "\n", f"{line}\n{before}\n")
        first = text.index("\nfrom ") + 1
        text = f"{text[:first]}{imported}\n{text[first:]}"
        (house / file).write_text(text, encoding="utf-8")
    return house


def perennial(house, *words):
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *map(str, words)],
        cwd=house,
        env={**os.environ, "PYTHONPATH": str(house)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def config(small_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.yaml"
    path.write_text(CONFIG.format(dataset=small_folder), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def runs(house, config, tmp_path_factory):
    """A run that nothing disturbed, and one that was killed while it trained the expert.

    The first has a rank that Ray starts; the other trains in the driver, the sooner to be killed.
    """
    whole, killed = (tmp_path_factory.mktemp("runs") / name for name in ("whole", "killed"))
    code, _, err = finish(perennial(house, "run", config, "--out", whole))
    assert code == 0, err
    again = "run", config, "cluster.workers=0", "--out", killed
    process = perennial(house, *again)
    wait_for(process, lambda: any((killed / EXPERT / "checkpoints").glob("[2-5]?/manifest.json")))
    kill_everything(process)
    code, out, err = finish(perennial(house, *again))
    assert code == 0, err
    return whole, killed, out


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_new_phase_is_planned_run_and_resumed(runs):
    whole, killed, out = runs
    for folder in (whole, killed):
        ledger = lines(folder / "ledger.jsonl")
        assert [record["phase"].removeprefix("toy/seed-0/") for record in ledger] == [
            "step-0/train",
            "step-0/evaluate",
            "step-1/toy-expert",
            "step-1/train",
            "step-1/evaluate",
        ]
        assert ledger[2]["where"] == "ranks"
        assert ledger[2]["output"] == f"{EXPERT}/model"
    assert "2 of 5 phases" in out
    for file in (
        "evaluation.json",
        "model/embedder.safetensors",
        "phases/toy-expert/model/card.json",
    ):
        step = "chains/toy/seed-0/steps/1"
        assert (whole / step / file).read_bytes() == (killed / step / file).read_bytes(), file
    again = [r["iteration"] for r in lines(killed / "metrics.jsonl") if "toy-expert" in r["phase"]]
    assert again[-1] == 60 and again.count(4) == 1, "it went on from the expert's own checkpoint"


def test_the_new_term_is_trained_with_what_the_phase_left(runs):
    records = [r for r in lines(runs[0] / "metrics.jsonl") if r["phase"].endswith("step-1/train")]
    distances = [record["nearexpert"] for record in records]
    assert distances[-1] < distances[0]


def test_everything_that_shows_phases_shows_the_new_one(house, runs):
    whole = runs[0]
    assert "toy-expert" in (whole / "report.html").read_text(encoding="utf-8")
    code, out, err = finish(perennial(house, "status", whole))
    assert code == 0, err
    assert "5 of 5 phases are done" in out and "toy-expert" in out
