"""Machines that lack something: a home, a name of the user, a GPU, room for sockets."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMELESS = ["unshare", "-U", "--map-user=12345", "--map-group=12345"]
"""A user whom the machine's list does not know, as containers have them."""
SHOW = """
import json, os
from launch.machine.surroundings import prepare_environment
prepare_environment()
import getpass, pathlib
from data_shards.storage.remote import CacheSettings
names = ("XDG_CACHE_HOME", "MPLCONFIGDIR", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "HOME")
print(json.dumps({name: os.environ.get(name) for name in names} | {
    "user": getpass.getuser(), "data": str(CacheSettings().folder)}))
"""


def nameless() -> list[str]:
    """The words that make a command a nameless user's."""
    if shutil.which("unshare") is None or subprocess.run([*NAMELESS, "true"]).returncode:
        pytest.skip("unshare -U is not allowed here, which a nameless user is made by")
    return NAMELESS


def settled(words=(), **changes):
    """What a process finds in its environment, and what it said; a variable is left out by None."""
    lacking = ("USER", "LOGNAME", "USERNAME", "LNAME", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    spinning = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    kept = {k: v for k, v in os.environ.items() if k not in (*lacking, *spinning)}
    changed = {"PYTHONPATH": str(ROOT), **kept, **changes}
    done = subprocess.run(
        [*words, sys.executable, "-c", SHOW],
        env={name: value for name, value in changed.items() if value is not None},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_a_home_that_cannot_be_written_is_replaced_for_caches_in_one_line(tmp_path):
    found, said = settled(HOME="/proc", TMPDIR=str(tmp_path))
    (private,) = tmp_path.iterdir()
    assert private.stat().st_mode & 0o777 == 0o700
    assert found["HOME"] == "/proc"
    assert found["XDG_CACHE_HOME"] == str(private / ".cache")
    assert found["data"] == str(private / ".cache" / "perennial")
    assert said.count("\n") == 1
    assert "/proc/.cache, " in said
    assert f"{private} is used instead" in said
    again, _ = settled(HOME="/proc", TMPDIR=str(tmp_path))
    assert again == found, "kernels would be built anew by every command"


def test_a_home_that_can_be_written_is_left_alone(tmp_path):
    found, said = settled(HOME=str(tmp_path))
    assert said == ""
    assert found["XDG_CACHE_HOME"] is None
    assert found["data"] == str(tmp_path / ".cache" / "perennial")
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_name_and_a_home_gets_both(tmp_path):
    found, _ = settled(nameless(), HOME=None, TMPDIR=str(tmp_path))
    assert found["user"] == "uid-12345"
    assert found["HOME"].startswith(str(tmp_path))


def test_threads_wait_asleep_unless_the_user_says_how():
    assert settled()[0]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert settled(OMP_WAIT_POLICY="active")[0]["OMP_WAIT_POLICY"] == "active"
    found, _ = settled(GOMP_SPINCOUNT="7")
    assert (found["OMP_WAIT_POLICY"], found["GOMP_SPINCOUNT"]) == (None, "7")


@pytest.mark.reliability(15, "cluster.gpu=true on a machine without a GPU is refused at once")
def test_a_gpu_that_is_not_there_is_said_at_once(tmp_path):
    config = tmp_path / "gpu.yaml"
    config.write_text(f"dataset: {tmp_path}/none\nmethods: {{finetune: {{}}}}\n")
    command = [sys.executable, "-m", "launch.cli", "run", config, "--out", tmp_path / "run"]
    for workers in (0, 2):
        done = subprocess.run(
            [*command, "cluster.gpu=true", f"cluster.workers={workers}"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "cluster.gpu = true needs" in done.stderr
        assert "torch finds none" in done.stderr
        assert not (tmp_path / "run").exists()
