"""What a run folder says is no address: nothing in it decides whom this machine asks."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console

from data_shards.settings import InputError
from launch.clusters import ray_jobs as jobs
from launch.config.cluster import ClusterSettings
from launch.config.load import load_config, locations
from launch.machine.ray_token import own_token
from launch.phases.status import open_run
from launch.runs.lease import Lease, Process, ask_to_end, newest
from launch.runs.remembered import remember, remembered
from monitoring.run_folder import ATTEMPTS_FOLDER

JOB = "perennial-run-0123abcd"


class Dashboard(BaseHTTPRequestHandler):
    """Answers like a cluster that has one job, of the run folder `server.run`."""

    def do_GET(self):
        self.server.heard.append((self.path, self.headers.get("Authorization")))
        answer = {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"}
        if self.path == f"/api/jobs/{JOB}":
            answer = {"type": "SUBMISSION", "status": "RUNNING", "entrypoint": "x"}
            answer |= {"submission_id": JOB, "metadata": {"run": str(self.server.run)}}
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@contextmanager
def dashboard(run):
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        server.heard, server.run = [], run
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    own_token()  # Ray keeps the first token of a process: another would shut later tests out
    return tmp_path / "state"


def run_folder(tmp_path, **told):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({"job": JOB, **told}))
    return folder


@pytest.mark.reliability(6, "`status`, `attach` and `stop` ask no address that a folder names")
def test_the_address_in_a_folder_is_not_asked(tmp_path):
    with dashboard(tmp_path / "run") as server:
        folder = run_folder(tmp_path, address=server.url)
        assert "--address" in jobs.status(folder)
        for ask in (jobs.stop, lambda run: jobs.follow(run, Console())):
            with pytest.raises(InputError, match="give the address"):
                ask(folder)
        assert not server.heard
        # the user's own word is enough
        assert "running" in jobs.status(folder, server.url)
        assert server.heard[-1][1].startswith("Bearer ")


@pytest.mark.parametrize("address", ["this://x", "os://x", "local", "http://h:1", "h", "h:1/x"])
def test_a_cluster_is_named_by_host_and_port(address):
    with pytest.raises(ValidationError, match="must be HOST:PORT"):
        ClusterSettings(address=address)


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "ray://head:10001", "[::1]:6379"])
def test_what_ray_takes_for_an_address_stays(address):
    assert ClusterSettings(address=address).address == address


def test_an_address_is_remembered_outside_of_the_folder_for_the_user_alone(tmp_path, state):
    folder = run_folder(tmp_path)
    with dashboard(folder) as server:
        assert remember(folder, job=JOB, address=server.url) is None
        assert "running" in jobs.status(folder)
        for path in (state, *state.rglob("*")):
            if path.is_dir():
                assert stat.S_IMODE(path.stat().st_mode) == 0o700 or path == state
        # another folder in its place, or moved, is another run
        folder.rename(tmp_path / "moved")
        assert not jobs.known(tmp_path / "moved")
        run_folder(tmp_path, job="perennial-another")
        assert not jobs.known(folder)


def test_a_home_that_cannot_be_written_is_said_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert "file" in remember(tmp_path, job=JOB)
    assert remembered(tmp_path).job is None


def test_a_job_of_another_run_is_not_stopped(tmp_path):
    folder = run_folder(tmp_path)
    with dashboard("/somewhere/else") as server:
        with pytest.raises(InputError, match="is no job of"):
            jobs.stop(folder, server.url)
        assert all("stop" not in path for path, _ in server.heard)


@pytest.mark.reliability(6, "an address of a cluster is http or https; Ray imports for the others")
@pytest.mark.parametrize(
    "address",
    [
        "this://x",
        "ray://127.0.0.1:1",
        "file:///etc",
        "127.0.0.1:1",
        "http://",
        "http://a b",
        "auto",
        "http://user:word@host:8265",
        "http://host/?token=abc",
        "http://host\n",
        "HTTP://h\x00",
    ],
)
def test_only_web_addresses_are_taken(tmp_path, address):
    folder = run_folder(tmp_path)
    with pytest.raises(InputError, match="is no address") as refused:
        jobs.status(folder, address)
    assert "word" not in str(refused.value) and "abc" not in str(refused.value)


def test_a_folder_that_was_not_sent(tmp_path):
    with pytest.raises(InputError, match=r"holds no job\.json"):
        jobs.stop(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"job": 1}',
        '{"job": "../../x"}',
        '{"job": "a?b"}',
        '{"job": "' + "a" * 400,
        "[" * 100000,
        '{"job": "a", "job": "b"}',
        '{"job": "x"}' + " " * 100000,
    ],
)
def test_a_damaged_job_file_is_one_line(tmp_path, content):
    folder = run_folder(tmp_path)
    (folder / "job.json").write_text(content)
    with pytest.raises(InputError, match="damaged"):
        jobs.status(folder, "http://127.0.0.1:1")


@pytest.mark.reliability(6, "`status` fetches nothing from a URL that a stranger's run.yaml names")
def test_the_dataset_of_a_strangers_run_is_not_fetched(tmp_path):
    with dashboard(None) as server:
        config = {"dataset": f"{server.url}/d", "methods": {"finetune": {}}}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(InputError, match="nothing is asked there"):
            open_run(tmp_path)
        assert not server.heard
        values = load_config(tmp_path / "run.yaml").model_dump(mode="json")
        remember(tmp_path, locations=tuple(locations(values)))
        with pytest.raises(InputError, match=r"holds no dataset|manifest|could not be"):
            open_run(tmp_path)
        assert server.heard


@pytest.mark.reliability(6, "`stop` ends no process that does not hold the run")
def test_a_lease_that_names_another_process_does_not_end_it(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        born = int(
            Path(f"/proc/{other.pid}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
        )
        holder = replace(Process.this(), pid=other.pid, born=born)
        assert holder.alive()
        (tmp_path / ATTEMPTS_FOLDER).mkdir()
        lease = Lease(1, holder, time.time(), time.time(), time.monotonic(), 60.0)
        (tmp_path / ATTEMPTS_FOLDER / "1.json").write_bytes(lease.content())
        with pytest.raises(InputError, match="nothing to stop"):
            ask_to_end(tmp_path)
        assert other.poll() is None
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()


@pytest.mark.parametrize(
    "changed",
    [
        {"seconds": 1e300},
        {"seconds": -1},
        {"seconds": "x"},
        {"began": 1e30},
        {"holder": None},
        {"attempt": "1"},
        {"clock": None},
        {"holder": {"pid": 10**30}},
    ],
)
def test_a_lease_of_other_types_is_none(changed):
    lease = Lease(1, Process.this(), 1.0, 1.0, 1.0, 60.0)
    assert Lease.parse(lease.content()) == lease
    assert Lease.parse(json.dumps({**json.loads(lease.content()), **changed}).encode()) is None


def test_attempts_are_plain_numbers_and_files(tmp_path):
    (tmp_path / ATTEMPTS_FOLDER).mkdir()
    for name in ("1", "²", "9" * 40, "-3"):
        (tmp_path / ATTEMPTS_FOLDER / f"{name}.json").touch()
    assert newest(tmp_path) == 1
    (tmp_path / ATTEMPTS_FOLDER / "2.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / ATTEMPTS_FOLDER / "3.json")
    with pytest.raises(InputError, match="nobody is running"):
        ask_to_end(tmp_path)
