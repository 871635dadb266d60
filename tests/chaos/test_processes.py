"""Real runs whose processes are slowed, killed, frozen, stalled and preempted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from launch.config.load import load_config
from launch.runs.run import Chain, Run
from monitoring.metrics import Metrics
from monitoring.records import read_jsonl
from tests.integration.test_resume import finish, kill_everything, ledger, start, wait_for
from tests.ranks import on_ranks
from trainer.heads.collectives import Ranks
from trainer.loop import train
from trainer.model import Model

CONFIG = """
dataset: {dataset}
benchmark: {{steps: 1, train_identities: 36, test_identities: 24, pairs: 40, seen_identities: 6}}
data: {{augmentation: {{flip: true, shift: 1}}}}
embedder: {{architecture: small, width: 4, dimension: 8}}
training: {{iterations: 90, batch: 24, milestones: [60], checkpoint_every: 5, log_every: 4}}
methods: {{finetune: {{}}}}
cluster: {{workers: 2, actors: 1, threads: 1, silent_seconds: 15}}
"""
STEP = "chains/finetune/seed-0/steps/0"
TRAINED = ["finetune/seed-0/step-0/train"]


@pytest.fixture(scope="module")
def config(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG.format(dataset=small_folder))
    return path


def undisturbed_rank(config, out):
    spec = Run.open(out, load_config(config)).training_spec(Chain("finetune", 0), 0)
    train(spec, Ranks.default(), torch.device("cpu"), Metrics(), lambda record: None)


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fingerprint of the model that two ranks train when nothing happens to them."""
    out = tmp_path_factory.mktemp("undisturbed")
    on_ranks(2, undisturbed_rank, config, out, folder=out / "store")
    return Model.open(out / STEP / "model").fingerprint


def reached(out: Path) -> int:
    """The iteration of the newest checkpoint."""
    saved = [p.name for p in (out / STEP / "checkpoints").glob("*")]
    return max([int(name) for name in saved if name.isdigit()], default=0)


def events(out: Path, *kinds: str) -> list[dict]:
    return [event for event in read_jsonl(out / "events.jsonl") if event["event"] in kinds]


def worker(out: Path, rank: int) -> psutil.Process:
    """The newest process of a rank."""
    starts = [e for e in events(out, "start", "restart") if e["rank"] == rank]
    return psutil.Process(starts[-1]["pid"])


def both_started(out: Path, restarts: int) -> bool:
    ranks = [event["rank"] for event in events(out, "start", "restart")]
    return ranks.count(0) > restarts and ranks.count(1) > restarts


def test_slowed_killed_and_frozen_the_run_goes_on_by_itself(
    config, undisturbed, tmp_path, record_fault
):
    out = tmp_path / "run"
    process = start(config, out)
    wait_for(process, lambda: both_started(out, 0) and reached(out) >= 5)
    slowed = worker(out, 1)
    for target in (10, 15):
        slowed.suspend()
        time.sleep(1)  # what being slow is made of, not a synchronisation
        slowed.resume()
        wait_for(process, lambda target=target: reached(out) >= target)
    assert not events(out, "restart", "ended")

    wait_for(process, lambda: reached(out) >= 20)
    worker(out, 1).kill()
    wait_for(process, lambda: both_started(out, 1) and reached(out) >= 45)
    assert not events(out, "ended")

    frozen = worker(out, 1)
    frozen.suspend()
    wait_for(process, lambda: both_started(out, 2))
    (ended,) = events(out, "ended")
    assert ended["ranks"] == [1]
    assert "rank 1 has been silent for" in ended["message"]
    assert "in finetune/seed-0/step-0/train while '" in ended["message"]
    assert "; rank 0 is at '" in ended["message"]
    code, printed, err = finish(process)
    assert code == 0, err
    assert "Traceback" not in err
    assert ended["message"] in printed
    assert Model.open(out / STEP / "model").fingerprint == undisturbed
    assert read_jsonl(out / "metrics.jsonl")[-1]["restarts"] == 2
    result = "the model of an undisturbed run, bit for bit"
    record_fault("a rank slowed (stopped for a second, twice)", "the others wait", result)
    record_fault(
        "a rank killed (SIGKILL)",
        "the group restarts from the newest checkpoint by itself",
        f"{result}; restarts 1 in metrics.jsonl",
    )
    record_fault(
        "a rank frozen (SIGSTOP)",
        "found by its silence, named with what it was doing, ended; the group restarts",
        f"{result}; restarts 2 in metrics.jsonl",
    )


def test_sigterm_saves_and_the_same_command_goes_on(config, undisturbed, tmp_path, record_fault):
    out = tmp_path / "run"
    process = start(config, out, "training.checkpoint_every=1000")
    wait_for(process, lambda: (out / "metrics.jsonl").exists())
    os.kill(process.pid, signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 75, err
    assert err.splitlines() == [
        "ended by SIGTERM in finetune/seed-0/step-0/train: the same command goes on from there"
    ]
    saved = reached(out)
    assert 0 < saved < 90
    assert not (out / STEP / "model").exists()
    process = start(config, out, "training.checkpoint_every=1000")
    wait_for(process, lambda: ledger(out) == TRAINED)
    kill_everything(process)
    assert Model.open(out / STEP / "model").fingerprint == undisturbed
    repeated = [r["iteration"] for r in read_jsonl(out / "metrics.jsonl")]
    assert repeated == sorted(set(repeated)), "an iteration was trained twice"
    record_fault(
        "the driver gets SIGTERM",
        "the ranks finish the iteration and save; exit status 75",
        "the same command ends with the model of an undisturbed run, bit for bit",
    )


def test_a_frozen_driver_that_wakes_up_finds_another_in_its_place(
    config, undisturbed, tmp_path, record_fault
):
    out = tmp_path / "run"
    first = start(config, out, "cluster.lease_seconds=2")
    wait_for(first, lambda: both_started(out, 0) and reached(out) >= 5)
    os.kill(first.pid, signal.SIGSTOP)  # its trainers go on

    def silent() -> bool:
        lease = json.loads((out / "attempts" / "1.json").read_text())
        return time.monotonic() - lease["clock"] > lease["seconds"]

    wait_for(first, silent)
    second = start(config, out)
    wait_for(second, lambda: len(events(out, "start")) == 4)
    os.kill(first.pid, signal.SIGCONT)
    code, _, err = finish(first)
    assert code == 2
    assert f"attempt 2 (process {second.pid} on " in err
    assert "attempt 1 writes nothing more" in err
    assert "Traceback" not in err
    code, _, err = finish(second)
    assert code == 0, err
    assert Model.open(out / STEP / "model").fingerprint == undisturbed
    assert (out / STEP / "evaluation.json").exists()
    assert ledger(out) == [*TRAINED, "finetune/seed-0/step-0/evaluate"]
    assert {record["attempt"] for record in read_jsonl(out / "ledger.jsonl")} == {2}
    one, two = events(out, "attempt")
    assert [one["attempt"], two["attempt"]] == [1, 2]
    assert "message" not in one
    assert "took over from attempt 1" in two["message"]
    assert "was silent for 2 s" in two["message"]
    later = [event for event in events(out, "start") if event["time"] > two["time"]]
    assert len(later) == 2, "the first driver wrote what its trainers said"
    assert not list((out / "targets").glob("*.json"))
    record_fault(
        "a driver is frozen (SIGSTOP) past its lease, replaced by another, and wakes up",
        "the first and its trainers are refused everything; exit status 2, with the second's name",
        "the second ends with the model of an undisturbed run, bit for bit",
    )


STALLED = """
import threading
from data_shards.storage.dataset import ShardDataset
from launch.cli import main
read, calls = ShardDataset.images, []
def images(self, samples):
    calls.append(0)
    if len(calls) > 4:
        threading.Event().wait()
    return read(self, samples)
ShardDataset.images = images
main()
"""


def test_a_stalled_input_is_named(config, tmp_path, record_fault):
    out = tmp_path / "run"
    command = [sys.executable, "-c", STALLED, "run", str(config), "--out", str(out)]
    settings = ["cluster.workers=0", "cluster.stalled_seconds=30"]
    done = subprocess.run(command + settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "rank 0 has been at 'reading input' in finetune/seed-0/step-0/train for 3" in done.stderr
    assert "cluster.stalled_seconds" in done.stderr
    record_fault(
        "the input stalls",
        "found after cluster.stalled_seconds and named with rank and phase",
        "with workers the group restarts; in the driver's own process the run ends with one line",
    )
