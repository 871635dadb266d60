"""Ranks that stay for job after job: killed between two, and where the cluster lacks the room.

That they stay otherwise is seen in tests/integration/test_resume.py.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch.config.load import load_config
from launch.runs.run import Chain, Run
from monitoring.metrics import Metrics
from monitoring.records import read_jsonl
from tests.ranks import on_ranks
from trainer.heads.collectives import Ranks
from trainer.loop import train
from trainer.model import Model

CONFIG = """
dataset: {dataset}
benchmark: {{steps: 2, train_identities: 36, test_identities: 24, pairs: 40, seen_identities: 6}}
embedder: {{architecture: small, width: 4, dimension: 8}}
training: {{iterations: 20, batch: 24, milestones: [10], checkpoint_every: 5, log_every: 4}}
methods: {{finetune: {{}}}}
cluster: {{workers: 2, actors: 1, threads: 1, max_failures: 0}}
"""
CHAIN = Chain("finetune", 0)
STEPS = (0, 1)


@pytest.fixture(scope="module")
def config(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG.format(dataset=small_folder))
    return path


def models(out: Path) -> list[str]:
    steps = out / "chains" / CHAIN.name / "steps"
    return [Model.open(steps / str(step) / "model").fingerprint for step in STEPS]


def undisturbed_rank(config: Path, out: Path) -> None:
    run = Run.open(out, load_config(config))
    for step in STEPS:
        spec = run.training_spec(CHAIN, step)
        train(spec, Ranks.default(), torch.device("cpu"), Metrics(), lambda record: None)


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The fingerprints of the models that two ranks train when nothing happens to them."""
    out = tmp_path_factory.mktemp("undisturbed")
    on_ranks(2, undisturbed_rank, config, out, folder=out / "store")
    return models(out)


def ended(program: str, config: Path, out: Path, *overrides: str) -> list[dict]:
    """The events of a run that goes on by itself, driven by `program`."""
    command = [sys.executable, "-c", program, "run", config, *overrides, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return read_jsonl(out / "events.jsonl")


def processes(events: list[dict], phase: str) -> dict[int, int]:
    """The process of each rank that began a phase, by rank."""
    return {e["rank"]: e["pid"] for e in events if e["event"] == "start" and e["phase"] == phase}


FIRST, SECOND = (f"{CHAIN.name}/step-{step}/train" for step in STEPS)

KILLED_BETWEEN = """
import os, signal
from launch.cli import main
from launch.execution.ray_ranks import RayRanks
from monitoring.records import read_jsonl
do = RayRanks.on_ranks
def on_ranks(self, phase, job, spec):
    events = self._run.folder / "events.jsonl"
    starts = [e for e in read_jsonl(events) if e["event"] == "start"]
    if starts:
        os.kill(next(e["pid"] for e in starts if e["rank"] == 1), signal.SIGKILL)
        while "failed" not in {e["event"] for e in read_jsonl(events)}:
            self._read_mail()
    do(self, phase, job, spec)
RayRanks.on_ranks = on_ranks
main()
"""


def test_a_rank_killed_between_two_jobs_is_nobodys_failure(
    config, undisturbed, tmp_path, record_fault
):
    """The run allows no failure of a phase at all."""
    out = tmp_path / "run"
    events = ended(KILLED_BETWEEN, config, out)
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert failed["message"].startswith("between two jobs: rank 1: its process was killed")
    before, after = processes(events, FIRST), processes(events, SECOND)
    assert before[0] != after[0] and before[1] != after[1], "the group starts anew"
    assert not [event for event in events if event["event"] == "restart"]
    assert models(out) == undisturbed
    record_fault(
        "a rank killed (SIGKILL) between two trainings",
        "the group starts anew and waits for the next one; no phase's failure",
        "the models of an undisturbed run, bit for bit",
    )


CROWDED = """
from launch.cli import main
from launch.execution import ray_cluster
local = ray_cluster._local
ray_cluster._local = lambda *given: {**local(*given), "num_cpus": 2}
main()
"""


def test_ranks_and_actors_make_room_for_each_other(config, undisturbed, tmp_path):
    """A cluster with two cores, for two ranks or an actor."""
    events = ended(CROWDED, config, tmp_path / "run")
    assert not set(processes(events, FIRST).values()) & set(processes(events, SECOND).values())
    assert models(tmp_path / "run") == undisturbed
