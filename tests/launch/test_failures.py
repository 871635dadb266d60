"""Why workers ended, from what Ray and the ranks themselves say of it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)

from launch.execution.failures import Failure, Repeats, crash_file, crashes, explain
from launch.execution.placement import Waiting, lacking

ROOT = Path(__file__).parents[2]
CRASH = """
import os, signal, sys
from pathlib import Path
from launch.execution.failures import crash_file, crash_told
def decoding():
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
with crash_told(crash_file(Path(sys.argv[1]), 1)):
    if sys.argv[2] != "nothing":
        decoding()
"""


def raised(line):
    text = f'Traceback (most recent call last):\n  File "x.py", line 3, in f\n    g()\n{line}\n'
    return UserExceptionWithTraceback(RuntimeError(), text)


def died(words="Worker unexpectedly exits with a connection error code 2. End of file."):
    return WorkerHealthCheckFailedError("Worker 1 failed", RayActorError(error_msg=words))


def crashed(folder, how):
    command = [sys.executable, "-c", CRASH, folder, how]
    code = subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode
    return code, crashes(folder, 2)


def test_an_exception_is_its_last_line_and_not_what_others_make_of_it():
    errors = {
        0: raised("RuntimeError: [gloo/transport/tcp/pair.cc:538] Connection closed by peer"),
        1: raised("torch.OutOfMemoryError: no room for 12 GB\n  a hint"),
    }
    assert explain(errors, {}) == Failure((1,), "torch.OutOfMemoryError: no room for 12 GB", True)
    assert not explain({0: errors[0]}, {}).within


def test_dead_processes():
    killed = explain({0: raised("RuntimeError: Connection closed by peer"), 1: died()}, {})
    assert (killed.ranks, killed.within) == ((1,), False)
    assert "was killed" in killed.why
    ended = explain({1: died("Worker exits with an exit code 3.")}, {})
    assert ended == Failure((1,), "its process ended by itself with exit code 3", True)


def test_a_machine_that_was_taken_away_is_told_from_one_that_failed():
    taken = WorkerHealthCheckFailedError("Worker 1 failed", RayActorError(preempted=True))
    other = raised("RuntimeError: Connection closed by peer")
    assert explain({0: other, 1: taken}, {}).preempted
    assert not explain({0: other, 1: died()}, {}).preempted


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGABRT", "SIGBUS"])
def test_a_crash_names_its_signal_and_place(tmp_path, how):
    code, found = crashed(tmp_path, how)
    assert code == -getattr(signal, how)
    failure = explain({0: raised("RuntimeError: Connection closed by peer"), 1: died()}, found)
    assert (failure.ranks, failure.within) == ((1,), True)
    assert failure.why.startswith("its process crashed: ")
    assert "in decoding (<string>, line 6)" in failure.why


def test_no_crash_leaves_no_word(tmp_path):
    assert crashed(tmp_path, "SIGKILL") == (-signal.SIGKILL, {})
    assert crashed(tmp_path, "nothing") == (0, {})
    assert not crash_file(tmp_path, 1).exists()


def test_only_failures_from_within_at_the_same_place_are_futile():
    same = [Failure((0,), f"OSError: [Errno 5] block {n}", True) for n in (1, 22)]
    other, outside = Failure((0,), "MemoryError", True), Failure((1,), "killed", False)
    repeats = Repeats()
    assert not repeats.futile(same[0], 20)
    assert not repeats.futile(same[1], 40), "it got on"
    assert not repeats.futile(other, 40), "it is another one"
    assert not repeats.futile(same[0], 40)
    assert repeats.futile(same[1], 40)
    assert not repeats.futile(outside, 40)
    assert not repeats.futile(outside, 40)


class Cluster:
    def __init__(self, **free):
        self.free = free

    def cluster_resources(self):
        return {"CPU": 8.0, **self.free}

    available_resources = cluster_resources


def test_what_a_cluster_lacks_is_said_once(monkeypatch):
    assert lacking({"GPU": 4.0, "CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}) == "1 of 4 GPU"
    monkeypatch.setattr("launch.execution.placement._PATIENCE_SECONDS", 0.0)
    told = []
    waiting = Waiting(Cluster(), {"GPU": 2.0, "trainer": 2.0}, told.append)
    for _ in range(3):
        waiting.check()
    assert told == ["waiting for machines: the cluster has 0 of 2 GPU, 0 of 2 trainer"]
