"""What no refactor may change: every configuration's fingerprints, and a run begun before it.

`pytest tests/launch/test_net.py --golden` writes the fingerprints anew, where a change is meant:
every run folder that users have is then trained again.
"""

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from launch.config.load import load_config
from launch.config.run import RunConfig
from launch.phases.planning import phases
from launch.runs.run import Run
from monitoring.goodput import goodput
from monitoring.live.run import LiveRun
from tests.alone import execute_alone
from tests.kernels import kernels
from trainer.model import Model

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("golden_fingerprints.json")
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
IDENTITIES = 1000
"""Classifier rows of every stand-in benchmark after its last step."""


def run_of(config: RunConfig, folder: Path) -> Any:
    """A run over a dataset and test sets of fixed hashes, none of which need be there."""
    steps = config.learning_steps
    rows = tuple(len(part) for part in np.array_split(np.arange(IDENTITIES), steps))
    benchmark = SimpleNamespace(row_ends=tuple(np.cumsum(rows).tolist()))
    benchmark.rows_before = lambda step: benchmark.row_ends[step - 1] if step else 0
    tests = {name: SimpleNamespace(fingerprint=f"test {name}") for name in config.evaluation.tests}
    dataset: Any = SimpleNamespace(fingerprint="0" * 64)
    return Run(folder, config, dataset, benchmark, tests)  # type: ignore[arg-type]


def fingerprints(name: str, folder: Path) -> dict[str, str]:
    """Each phase's fingerprint by the phase's name."""
    run = run_of(load_config(ROOT / "configs" / f"{name}.yaml"), folder)
    return {phase.name: phase.fingerprint for phase in phases(run)}


def test_every_configuration_has_its_fingerprints(tmp_path, request):
    found = {name: fingerprints(name, tmp_path) for name in CONFIGS}
    if request.config.getoption("--golden"):
        GOLDEN.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert found.keys() == golden.keys()
    for name, own in found.items():
        assert own == golden[name], name


def lines_of(file: str) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines()


OLD_RUN = Path(__file__).with_name("old_run.tar.xz")
"""A dataset, a configuration, and a run of it that SIGTERM ended amid the training of its last
learning step, all written on 2026-11-28 by commit 89a1e8b."""
OLD_LAST_LOSS = 2.8254635334014893
"""Of that training, as the same commit ended it."""


def live(run: Path) -> tuple[Any, ...]:
    """What the live page says of a run's progress."""
    told = LiveRun(run.parent, run)
    told.look()
    view = told.overview(None, 0.0)
    return tuple(view[key] for key in ("state", "done", "of", "phases_done", "phases"))


def test_a_run_begun_before_is_continued(tmp_path, monkeypatch):
    with tarfile.open(OLD_RUN) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # the configuration names its dataset by a relative path
    before = Path("run/ledger.jsonl").read_bytes()
    checkpoint = int(
        next(Path("run").glob("chains/bct-sys/*/steps/2/checkpoints/latest")).read_text()
    )
    assert goodput(Path("run")).seconds["cpu"] == pytest.approx(7.182830, abs=1e-6)
    assert live(Path("run")) == ("stopped", 8, 9, None, None)
    execute_alone(load_config(Path("c.yaml")), Path("run"))
    assert live(Path("run")) == ("finished", 9, 9, 28, 28)
    after = Path("run/ledger.jsonl").read_bytes()
    assert after.startswith(before), "a finished phase was done again"
    kinds = [json.loads(line)["kind"] for line in after[len(before) :].splitlines()]
    assert kinds == ["train", "evaluate", "compatibility"]
    records = [json.loads(line) for line in lines_of("run/metrics.jsonl")]
    own = [r for r in records if r["phase"] == "bct-sys/seed-0/step-2/train"]
    assert [r["iteration"] for r in own] == list(range(5, 111, 5)), "it went on from its checkpoint"
    assert 0 < checkpoint < 110
    assert own[-1]["loss"] == pytest.approx(OLD_LAST_LOSS, rel=1e-3)


DEMO = Path(__file__).with_name("golden_demo.json")


def made_up(worker, model, samples, *rest):
    """Instead of `embed_samples`: an evaluation changes nothing that is trained, and takes long."""
    dimension = Model.open(model).settings.dimension
    return np.random.default_rng(0).normal(size=(len(samples), dimension)).astype(np.float32)


def test_the_demo_has_its_golden_losses(tmp_path, monkeypatch, request):
    """The demo's first iterations of every training, on characters that are drawn here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.phases.evaluate.embed_samples", made_up)
    shortened = ["training.iterations=6", "training.milestones=[4]", "training.log_every=2"]
    config = load_config(ROOT / "configs" / "demo.yaml", [*shortened, "cluster.threads=1"])
    execute_alone(config, Path("run"))
    losses: dict[str, list[float]] = {}
    for record in map(json.loads, lines_of("run/metrics.jsonl")):
        losses.setdefault(record["phase"], []).append(record["loss"])
    if request.config.getoption("--golden"):
        DEMO.write_text(json.dumps({"kernels": kernels(), "losses": losses}, indent=1) + "\n")
    golden = json.loads(DEMO.read_text())
    close = 1e-6 if golden["kernels"] == kernels() else 1e-3
    assert losses.keys() == golden["losses"].keys()
    for phase, own in losses.items():
        assert own == pytest.approx(golden["losses"][phase], rel=close), phase
