"""A run killed at any moment goes on where it was, and ends as if nothing had happened."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from monitoring.logs import read_logs
from monitoring.records import read_jsonl
from trainer.model import Model

CONFIG = """
dataset: {dataset}
benchmark: {{steps: 2, train_identities: 36, test_identities: 24, pairs: 40, seen_identities: 6}}
data: {{augmentation: {{flip: true}}}}
embedder: {{architecture: small, width: 4, dimension: 8}}
training: {{iterations: 60, batch: 24, milestones: [30], checkpoint_every: 5, log_every: 4}}
methods:
  both: {{kind: combination, of: {{fkd: {{neighbours: 5, relaxation: 0.01}}, bct-sys: {{}}}}}}
cluster: {{workers: 2, actors: 1}}
"""


@pytest.fixture(scope="module")
def config(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "tiny.yaml"
    path.write_text(CONFIG.format(dataset=small_folder))
    return path


PACED = """
from launch.cli import main
from launch.phases import neighbours
from tests.chaos.pace import paced_answers
neighbours.write_answers = paced_answers
main()
"""
"""`perennial`, whose actors take their time over what the old model says."""


def start(
    config: Path, out: Path, *overrides: str, program: tuple[str, str] = ("-m", "launch.cli")
) -> subprocess.Popen:
    command = [
        sys.executable,
        *program,
        "run",
        str(config),
        *overrides,
        "--out",
        str(out),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def start_rank(config: Path, out: Path) -> subprocess.Popen:
    """The run as the only rank of torchrun's way, which needs no Ray."""
    words = [str(config), "cluster.threads=1", "--out", str(out)]
    only = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, "-m", "launch.ranks", *words],
        env={**os.environ, **only, **meeting},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def family_of(process: subprocess.Popen) -> list[psutil.Process]:
    """A process and all that it has started."""
    first = psutil.Process(process.pid)
    return [first, *first.children(recursive=True)]


def kill_everything(process: subprocess.Popen) -> None:
    """SIGKILL to the driver, Ray and every worker."""
    family = family_of(process)
    for member in family:
        if member.is_running():
            member.kill()
    psutil.wait_procs(family)
    process.communicate()


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Polls until `condition`; the process must not end before it."""
    while not condition():
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        time.sleep(0.01)


def evaluations(out: Path) -> dict[str, str]:
    files = sorted(out.glob("chains/*/*/steps/*/evaluation.json"))
    return {str(file.relative_to(out)): file.read_text() for file in files}


def models(out: Path) -> list[str]:
    """The fingerprint of each step's model."""
    steps = sorted((out / "chains/both/seed-0/steps").iterdir())
    return [Model.open(step / "model").fingerprint for step in steps]


def ledger(out: Path) -> list[str]:
    path = out / "ledger.jsonl"
    return (
        [json.loads(line)["phase"] for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    code, _, err = finish(start(config, out))
    assert code == 0, err
    assert "Traceback" not in err
    assert "Warning" not in err
    return out


def test_a_run_leaves_what_it_promises(undisturbed):
    assert ledger(undisturbed) == [
        "both/seed-0/step-0/train",
        "both/seed-0/step-0/evaluate",
        "both/seed-0/step-1/neighbours",
        "both/seed-0/step-1/prototypes",
        "both/seed-0/step-1/train",
        "both/seed-0/step-1/evaluate",
    ]
    for step in "01":
        folder = undisturbed / "chains/both/seed-0/steps" / step
        assert (folder / "model/embedder.safetensors").exists()
        assert not (folder / "checkpoints").exists()
        measured = json.loads((folder / "evaluation.json").read_text())
        assert 0 < measured["top1"] <= 1
        assert measured["queries_without_match"] == 0
    page = (undisturbed / "report.html").read_text()
    assert "both" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert not list((undisturbed / "targets").glob("*.json"))  # nobody is missed


def test_ranks_stay_from_job_to_job(undisturbed):
    """Where there is room for them and for actors."""
    events = read_jsonl(undisturbed / "events.jsonl")
    first, second = (
        {event["rank"]: event["pid"] for event in events if event.get("phase", "").endswith(job)}
        for job in ("step-0/train", "step-1/train")
    )
    assert len(first) == 2
    assert first == second


def test_every_process_of_a_run_has_logged(undisturbed):
    lines = list(read_logs(undisturbed))
    assert {(x["job"], x.get("rank"), x.get("actor")) for x in lines} == {
        ("driver", None, None),
        ("trainer", 0, None),
        ("trainer", 1, None),
        ("actor", None, "0"),
    }
    told = [x for x in lines if x.get("rank") == 1 and x["phase"] == "both/seed-0/step-1/train"]
    assert told[-1]["iteration"] == 60 and "loss" in told[-1]["message"]
    driver = [x for x in lines if x["job"] == "driver"]
    assert [x["phase"] for x in driver if x["message"] == "begins"] == ledger(undisturbed)


def test_a_finished_run_is_not_repeated(undisturbed, config):
    before = (undisturbed / "ledger.jsonl").read_bytes()
    code, out, err = finish(start(config, undisturbed))
    assert code == 0, err
    assert "all 6 phases" in out
    assert (undisturbed / "ledger.jsonl").read_bytes() == before


def killed_and_finished(
    start: Callable[[], subprocess.Popen], out: Path, moments: list[Callable[[], bool]]
) -> None:
    """Starts a run, kills all of it as soon as a moment has come, and so on; then lets it end."""
    for moment in moments:
        done = ledger(out)
        process = start()
        wait_for(process, moment)
        kill_everything(process)
        assert ledger(out)[: len(done)] == done
    code, _, err = finish(start())
    assert code == 0, err


def ended_alike(out: Path, undisturbed: Path) -> None:
    assert ledger(out) == ledger(undisturbed), "a finished phase was repeated"
    assert len(evaluations(out)) == 2
    assert evaluations(out) == evaluations(undisturbed)
    assert models(out) == models(undisturbed)
    means = "chains/both/seed-0/steps/1/prototypes.safetensors"
    assert (out / means).read_bytes() == (undisturbed / means).read_bytes()


def test_killed_in_every_kind_of_phase_it_ends_bit_for_bit_alike(config, tmp_path):
    """Without Ray, whose start takes longer than such a run."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    steps = out / "chains/both/seed-0/steps"
    moments = {
        "training from scratch": lambda: any(steps.glob("0/checkpoints/1[0-9]")),
        "training once more": lambda: any(steps.glob("0/checkpoints/[345][0-9]")),
        "evaluation": lambda: "both/seed-0/step-0/train" in ledger(out),
        "neighbourhoods": lambda: any(steps.glob("1/neighbours.part/shard-*")),
        "prototypes": lambda: any(steps.glob("1/prototypes.part/shard-*")),
        "training with a teacher": lambda: any(steps.glob("1/checkpoints/[234][0-9]")),
        "last evaluation": lambda: "both/seed-0/step-1/train" in ledger(out),
    }
    killed_and_finished(lambda: start_rank(config, out), out, [*moments.values()])
    code, _, err = finish(start_rank(config, whole))
    assert code == 0, err
    ended_alike(out, whole)


def test_killed_with_ray_and_all_its_workers_it_ends_bit_for_bit_alike(
    undisturbed, config, tmp_path
):
    """Nobody killed, the ranks of both steps are the same processes."""
    out = tmp_path / "run"
    steps = out / "chains/both/seed-0/steps"
    moments = {
        "actors at work": lambda: any(steps.glob("1/neighbours.part/shard-*")),
        "ranks at work": lambda: any(steps.glob("1/checkpoints/[234][0-9]")),
    }
    paced = ("-c", PACED)
    killed_and_finished(lambda: start(config, out, program=paced), out, [*moments.values()])
    ended_alike(out, undisturbed)


def listening(family: list[psutil.Process]) -> set[str]:
    """The addresses that processes listen on."""
    sockets = [s for member in family for s in member.net_connections("inet")]
    return {s.laddr.ip.removeprefix("::ffff:") for s in sockets if s.status == "LISTEN"}


def test_ctrl_c_says_how_to_go_on_and_nobody_listens_beyond_this_machine(config, tmp_path):
    out = tmp_path / "run"
    process = start(config, out)
    wait_for(process, lambda: any(out.glob("chains/both/seed-0/steps/0/checkpoints/*")))
    family = family_of(process)
    assert listening(family) <= {"127.0.0.1", "::1"}
    names = {" ".join(member.cmdline()).strip() for member in family}
    assert "ray::RayTrainWorker" in names
    needless = "ray::.*(Controller|Dataset|Cleaner|Preempt|Autoscal|IDLE)|/(log_)?monitor.py|Usage"
    assert not [name for name in names if re.search(needless, name)]
    assert list(out.glob("targets/trainer-1.json")), "no rank serves metrics: nothing was tested"
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err


def test_damage_found_while_training_is_one_clear_line(config, small_folder, tmp_path):
    """A shard is damaged on the way: more samples than the budget cannot be read."""
    copy = shutil.copytree(small_folder, tmp_path / "dataset")
    out = tmp_path / "run"
    process = start(config, out, f"dataset={copy}", "data.max_quarantined=2", "cluster.workers=1")
    wait_for(process, lambda: any(out.glob("chains/both/seed-0/steps/0/checkpoints/*")))
    for shard in copy.glob("*.tar"):
        size = shard.stat().st_size
        with shard.open("r+b") as file:
            file.write(bytes(size))
    code, _, err = finish(process)
    assert code == 2
    assert "samples are damaged, more than data.max_quarantined = 2" in err
    assert "Traceback" not in err
    assert (out / "chains/both/seed-0/steps/0/quarantine.jsonl").exists()
