"""`perennial serve` as a command: what it refuses, prints and listens on."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest

from data_shards.settings import InputError
from launch.commands.serving import serve_runs, token_for
from tests.monitoring.live_runs import ask, ask_json, write_run

TOKEN = "a-token-of-the-user"


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs", "one")
    return tmp_path / "runs"


def test_a_token_is_made_beyond_localhost():
    assert token_for("127.0.0.1", None) == (None, False)
    assert token_for("localhost", TOKEN) == (TOKEN, False)
    made, own = token_for("0.0.0.0", None)
    assert own and len(made) > 40 and made != token_for("0.0.0.0", None)[0]
    for bad in ("short", "a" * 15, "é" * 20, "a" * 20 + "\n"):
        with pytest.raises(InputError, match="PERENNIAL_SERVE_TOKEN"):
            token_for("0.0.0.0", bad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folder": "none"}, "is no folder"),
        ({"folder": "runs/one"}, "give the folder above it"),
        ({"host": "192.0.2.1"}, "--host or --port"),
        ({"prometheus": "localhost:9090"}, "is no URL"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(runs, change, words):
    given = {"folder": "runs", "host": "127.0.0.1", "port": 0, "prometheus": None, "scrape": ()}
    given |= change
    folder = runs.parent / given.pop("folder")
    with pytest.raises(InputError, match=words) as raised:
        serve_runs(folder, **given, say=lambda line: None)
    assert "\n" not in str(raised.value)


@contextmanager
def command(*given, **environment):
    """A real `perennial serve` and its first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "serve", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
    )
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


def test_the_command_listens_on_localhost_alone_and_ends_by_ctrl_c(runs):
    with command(str(runs), "--port", "0", PERENNIAL_SERVE_TOKEN=TOKEN) as (process, line):
        port = int(line.rstrip("/\n").rpartition(":")[2])
        assert ask(port, "/api/runs")[0] == 401
        found = ask_json(port, "/api/runs", {"Authorization": f"Bearer {TOKEN}"})
        assert len(found["runs"]) == 1
        listening = psutil.Process(process.pid).net_connections("inet")
        assert {(c.laddr.ip, c.laddr.port) for c in listening if c.status == "LISTEN"} == {
            ("127.0.0.1", port)
        }
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
        assert process.returncode == 0
        assert TOKEN not in line + rest and "Traceback" not in rest


def test_the_command_prints_a_token_that_it_made_and_logs_none(runs):
    with command(str(runs), "--port", "0", "--host", "0.0.0.0") as (process, line):
        address, _, token = line.strip().partition("/?token=")
        port = int(address.rpartition(":")[2])
        assert ask(port, "/api/runs")[0] == 401
        assert ask(port, f"/?token={token}")[0] == 303
        assert ask(port, "/api/runs", {"Authorization": f"Bearer {token}"})[0] == 200
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == ""
