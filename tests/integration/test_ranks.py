"""A run without Ray ends as one on Ray does, and goes on after a stop."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

CONFIG = """
dataset: {dataset}
benchmark: {{steps: 2, train_identities: 36, test_identities: 24, pairs: 40, seen_identities: 6}}
embedder: {{architecture: small, width: 4, dimension: 8}}
training: {{iterations: 40, batch: 24, milestones: [30], checkpoint_every: 5, log_every: 4}}
teacher: {{compile: false, precision: fp32}}
methods:
  wild:
    kind: finetune
    training: {{learning_rate: 1.0e+30, guard: {{rewind_after: 2, max_rewinds: 0}}}}
  fkd: {{neighbours: 5, relaxation: 0.01}}
cluster: {{workers: 2, actors: 2, threads: 1}}
"""
DIVERGED = "wild/seed-0/step-0/train: iteration 3: updates were skipped again"
EVALUATIONS = [f"chains/fkd/seed-0/steps/{step}/evaluation.json" for step in (0, 1)]


@pytest.fixture(scope="module")
def config(small_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "tiny.yaml"
    path.write_text(CONFIG.format(dataset=small_folder))
    return path


def on_ranks(config, out, *overrides):
    """torchrun with two ranks, as the JobSet of k8s/ starts it."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "launch.ranks", config, *overrides, "--out", out],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process):
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def kinds(out):
    return [json.loads(line)["kind"] for line in (out / "ledger.jsonl").read_text().splitlines()]


def test_ranks_stopped_amid_training_end_as_ray_does(config, tmp_path):
    """And so does a run with a method that diverges: the other one is finished all the same."""
    ours, rays = tmp_path / "ranks", tmp_path / "ray"
    process = on_ranks(config, ours)
    checkpoints = ours / "chains/fkd/seed-0/steps/0/checkpoints"
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline, finished(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # which torchrun hands on
    code, said = finished(process)
    assert code and "ended by SIGTERM in fkd/seed-0/step-0/train" in said, said
    assert not (ours / "ledger.jsonl").exists()

    code, said = finished(on_ranks(config, ours))
    assert code and said.count("all is done but what needs this: wild/") == 1, said
    assert DIVERGED in said
    assert kinds(ours) == ["train", "evaluate", "neighbours", "train", "evaluate"]
    records = [json.loads(line) for line in (ours / "metrics.jsonl").read_text().splitlines()]
    iterations = [r["iteration"] for r in records if r["phase"] == "fkd/seed-0/step-0/train"]
    assert iterations == list(range(4, 41, 4)), "what the first attempt did is not done again"
    assert not list((ours / "targets").iterdir())

    command = [sys.executable, "-m", "launch.cli", "run", config, "--out", rays]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert f"all is done but what needs this: {DIVERGED}" in done.stderr
    assert kinds(rays) == kinds(ours)
    for file in EVALUATIONS:
        assert json.loads((ours / file).read_text()) == json.loads((rays / file).read_text())


def test_a_mistake_is_told_once_and_ends_every_rank(config, tmp_path):
    code, said = finished(on_ranks(config, tmp_path / "run", "benchmark.steps=30"))
    assert code and said.count("error: ") == 1, said
    assert "lower the workers or benchmark.steps" in said
