"""Runs sent to a Ray cluster by --address: a real one, with a dashboard and a token."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from data_shards.settings import InputError
from launch.clusters.environment import check_lock, differences, installed, write_lock
from launch.clusters.ray_jobs import pack
from launch.config.load import load_config

BIN = Path(sys.executable).parent
CONFIG = """
dataset: {dataset}
benchmark: {{steps: 1, train_identities: 36, test_identities: 24, pairs: 40, seen_identities: 6}}
embedder: {{width: 4, dimension: 8}}
training: {{iterations: 20, batch: 24, checkpoint_every: 5}}
methods: {{finetune: {{}}}}
cluster: {{workers: 1, actors: 1}}
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def config(small_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("job") / "tiny.yaml"
    path.write_text(CONFIG.format(dataset=os.path.relpath(small_folder)))
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a head's dashboard, and the environment of those who know its token."""
    port = free_port()
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state")),
    }
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--port={free_port()}"),
        *("--node-ip-address=127.0.0.1", "--num-cpus=4", "--include-dashboard=true"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}"),
        *("--dashboard-agent-listen-port", str(free_port())),
    ]
    log = tmp_path_factory.mktemp("ray") / "log"
    with log.open("w") as out:
        head = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: ask(["ray", "job", "list", "--address", address], environment)[0] == 0)
        yield address, environment
    finally:
        family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for process in family:
            if process.is_running():
                process.kill()
        psutil.wait_procs(family)


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def ask(words, environment):
    command = [str(BIN / words[0]), *map(str, words[1:])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def perennial(*words):
    return ["python", "-m", "launch.cli", *words]


def test_a_run_is_sent_and_followed_to_its_end(config, cluster, tmp_path):
    address, environment = cluster
    out = tmp_path / "run"
    code, told, err = ask(perennial("run", config, "--out", out, "--address", address), environment)
    assert code == 0, told + err
    assert "finetune/seed-0/step-0/evaluate" in told and "report: " in told
    assert list(out.glob("chains/finetune/seed-0/steps/0/evaluation.json"))
    assert (out / "report.html").exists()
    code, told, _ = ask(perennial("status", out), environment)
    assert code == 0 and "succeeded" in told and "2 of 2 phases" in told
    colleague = {**environment, "XDG_STATE_HOME": str(tmp_path / "theirs")}
    assert ask(perennial("attach", out), colleague)[0] == 2
    assert ask(perennial("attach", out, "--address", address), colleague)[0] == 0

    stranger = {**environment, "RAY_AUTH_TOKEN": "0" * 32}
    code, _, err = ask(perennial("attach", out), stranger)
    assert (code, err.count("\n")) == (2, 1) and "RAY_AUTH_TOKEN" in err, err


def test_ctrl_c_leaves_the_run_alone_and_stop_lets_it_save(config, cluster, tmp_path):
    address, environment = cluster
    out = tmp_path / "run"
    endless = "training.iterations=100000", "cluster.workers=0"
    command = perennial("run", config, *endless, "--out", out)
    started = subprocess.Popen(
        [str(BIN / command[0]), *map(str, command[1:]), "--address", address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    saved = out / "chains/finetune/seed-0/steps/0/checkpoints"
    until(lambda: any(saved.glob("[0-9]*")) or started.poll() is not None)
    os.kill(started.pid, signal.SIGINT)
    told, _ = started.communicate(timeout=60)
    assert started.returncode == 0, told
    assert "detached, the run goes on" in told and "Traceback" not in told
    reached = max(int(folder.name) for folder in saved.glob("[0-9]*"))
    until(lambda: max(int(folder.name) for folder in saved.glob("[0-9]*")) > reached)

    assert ask(perennial("stop", out), environment)[0] == 0
    _, told, err = ask(perennial("attach", out), environment)
    assert "ended by SIGTERM" in told and "was stopped" in told, told + err
    assert "stopped" in ask(perennial("status", out), environment)[1]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer " + "0" * 32}])
@pytest.mark.parametrize(
    "path", ["/api/jobs/", "/api/version", "/api/cluster_status", "/nodes?view=summary"]
)
def test_jobs_and_dashboard_refuse_strangers(cluster, path, headers):
    """Jobs are code that the cluster runs: whoever can send one owns it."""
    address, environment = cluster

    def code(method, headers, body=None):
        request = urllib.request.Request(address + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert code("GET", headers) in (401, 403)
    known = {"Authorization": "Bearer " + environment["RAY_AUTH_TOKEN"]}
    assert code("GET", known) == 200
    if path == "/api/jobs/":
        job = json.dumps({"entrypoint": "true"}).encode()
        assert code("POST", {**headers, "Content-Type": "application/json"}, job) in (401, 403)


def test_what_travels_is_code_configuration_and_versions(config, tmp_path):
    pack(load_config(config), tmp_path)
    packed = load_config(tmp_path / "run.yaml")
    assert Path(packed.dataset).is_absolute() and packed.cluster.address == "auto"
    assert (tmp_path / "trainer" / "loop.py").exists()
    assert not list(tmp_path.rglob("*.pyc"))
    check_lock(tmp_path / "packages.lock")
    names = installed()
    assert {"torch", "deepspeed", "ray"} <= names.keys() and "pytest" not in names


def test_other_packages_are_refused_by_name(tmp_path):
    write_lock(tmp_path / "lock")
    with (tmp_path / "lock").open("a") as file:
        file.write("no-such-package==1.0\n")
    with pytest.raises(
        InputError, match=r"no-such-package 1.0 is needed, nothing is here: install"
    ):
        check_lock(tmp_path / "lock")
    assert differences({"torch": "0.1"})[0].startswith("torch 0.1 is needed, 2.")
