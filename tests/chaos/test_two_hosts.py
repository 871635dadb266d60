"""A training across two hosts whose cable is slowed, cut and mended, and one of which dies."""

import json
import secrets
import subprocess
import time
import warnings
from pathlib import Path

import pytest

from monitoring.records import read_jsonl
from tests.chaos.test_processes import undisturbed_rank
from tests.chaos.two_hosts import PORT, PYTHON, WATCHFUL, two_hosts, why_not
from tests.integration.test_resume import finish, wait_for
from tests.ranks import on_ranks
from trainer.model import Model

if reason := why_not():
    pytest.skip(reason, allow_module_level=True)

CONFIG = """
dataset: {dataset}
benchmark: {{steps: 1, train_identities: 36, test_identities: 24, pairs: 40}}
embedder: {{architecture: small, width: 4, dimension: 8}}
training: {{iterations: 240, batch: 24, milestones: [160], checkpoint_every: 10, log_every: 2}}
methods: {{finetune: {{}}}}
cluster: {{workers: 2, actors: 1, threads: 1, placement: strict_spread}}
"""
STEP = "chains/finetune/seed-0/steps/0"


@pytest.fixture(scope="module")
def config(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG.format(dataset=small_folder))
    return path


def iteration(out: Path) -> int:
    """The newest that was reported."""
    return max((record["iteration"] for record in read_jsonl(out / "metrics.jsonl")), default=0)


def restarts(out: Path) -> int:
    """How often rank 0 was started again."""
    events = read_jsonl(out / "events.jsonl")
    return sum(event["event"] == "restart" and event["rank"] == 0 for event in events)


def test_slow_cut_and_dead_hosts_do_not_change_the_result(config, tmp_path, record_fault):
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), **WATCHFUL}
    out = tmp_path / "run"
    with two_hosts() as (near, far):
        near.start_ray(near, 3, secret)
        far.start_ray(near, 1, secret)
        place = f"cluster.address={near.address}:{PORT}"
        command = [PYTHON, "-m", "launch.cli", "run", config, place, "--out", out]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        driver = near.popen(*command, env=secret, **streams)

        def gets_on(by: int = 10) -> None:
            target = iteration(out) + by
            wait_for(driver, lambda: iteration(out) >= target)

        gets_on()
        starts = [e for e in read_jsonl(out / "events.jsonl") if e["event"] == "start"]
        assert len(starts) == 2
        assert starts[0]["pid"] in {process.pid for h in (near, far) for process in h.processes()}
        if near.shape("netem", "delay", "20ms"):
            slowed = "delayed by 20 ms each way"
            assert far.shape("netem", "delay", "20ms")
        else:
            warnings.warn(
                "no netem in this kernel: the link is narrowed, not delayed", stacklevel=1
            )
            slowed = "narrowed to 1 Mbit/s"
            for host in (near, far):
                assert host.shape("tbf", "rate", "1mbit", "burst", "4kb", "latency", "2s")
        gets_on()
        for host in (near, far):
            host.unshape()
        gets_on()
        far.link("down")
        time.sleep(2)  # what being cut is made of, not a synchronisation
        far.link("up")
        gets_on()
        assert restarts(out) == 0

        far.link("down")
        far.kill()  # nothing tells the others: neither process nor cable is there
        stuck = iteration(out)
        far.link("up")
        far.start_ray(near, 1, secret)
        wait_for(driver, lambda: restarts(out) == 1 and iteration(out) > stuck)
        code, _, err = finish(driver)
        assert code == 0, err
        assert "Traceback" not in err
    reference = tmp_path / "undisturbed"
    on_ranks(2, undisturbed_rank, config, reference, folder=tmp_path / "store")
    expected = Model.open(reference / STEP / "model").fingerprint
    assert Model.open(out / STEP / "model").fingerprint == expected
    assert 0 < json.loads((out / STEP / "evaluation.json").read_text())["top1"] <= 1
    result = "the model of two ranks on one host, bit for bit"
    record_fault(f"two hosts: the link is {slowed}", "training is slower", result)
    record_fault("two hosts: the link is cut for two seconds", "training waits", result)
    record_fault(
        "two hosts: one loses link and power, comes back and starts Ray again",
        "Ray misses it, and the group restarts from the newest checkpoint when it is there",
        result,
    )
