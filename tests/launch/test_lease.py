"""One attempt at a time holds a run, whoever asks, dies, freezes or wakes up."""

import gc
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.settings import InputError
from launch.runs.lease import (
    Fence,
    Lease,
    Process,
    Superseded,
    ask_to_end,
    holding,
    judge,
    newest,
)

FORK = multiprocessing.get_context("fork")
RACERS, ROUNDS = 6, 4
AGES = st.floats(0, 1e6)


def lease(place: str, clock: float = 0.0, ended: bool = False) -> Lease:
    return Lease(3, Process("h", 1, 2, place), 0.0, 0.0, clock, 10.0, ended)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def hold(folder: Path, seconds: float, started, go_on) -> None:
    """A driver: holds the run until `go_on`, and then says whether it may still write."""
    # Ray, where the process that forked this one has used it, leaves a handler that says goodbye
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()  # and what has threads there, DALI's pipelines, must not be ended here
    with holding(folder, seconds) as attempt:
        started.set()
        go_on.wait()
        (folder / f"may-{attempt.fence.attempt}").write_text(str(not attempt.fence.lost()))


@pytest.fixture
def driver(tmp_path):
    """Starts drivers in processes of their own, which hold the run when it returns."""
    processes = []

    def start(seconds: float):
        started, go_on = FORK.Event(), FORK.Event()
        process = FORK.Process(target=hold, args=(tmp_path, seconds, started, go_on))
        processes.append(process)
        process.start()
        assert started.wait(60)
        return process, go_on

    yield start
    for process in processes:
        process.kill()
        process.join()


@given(AGES, AGES, AGES, st.booleans(), st.booleans())
def test_a_foreign_clock_is_never_believed(clock, now, unchanged, alive, ended):
    verdict = judge(lease("there", clock, ended), "here", alive, now, unchanged)
    assert verdict == ("ended" if ended else "silent" if unchanged > 10 else "unknown")


@given(AGES, AGES, AGES)
def test_in_its_own_place_a_holder_is_judged_by_pid_and_clock(clock, now, unchanged):
    assert judge(lease("here", clock), "here", False, now, unchanged) == "gone"
    verdict = judge(lease("here", clock), "here", True, now, unchanged)
    assert verdict == ("silent" if now - clock > 10 else "held")


def race(folder: Path, racer: int) -> None:
    """Takes the run again and again; dies in it once; notes when it held which attempt."""
    gc.disable()
    with (folder / "notes").open("a", buffering=1) as notes:
        for turn in range(ROUNDS):
            while True:
                try:
                    with holding(folder, 60) as attempt:
                        number = attempt.fence.attempt
                        notes.write(f"begin {number}\n")
                        assert not attempt.fence.lost()
                        if turn == ROUNDS - 1 and racer % 2:
                            os.kill(os.getpid(), signal.SIGKILL)
                        notes.write(f"end {number}\n")
                        break
                except InputError:
                    time.sleep(0.001 * racer)


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (Path("/proc/run"), tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(InputError, match=r"cannot be written to .*--out"),
            holding(folder, 60),
        ):
            pass


def test_of_many_racing_processes_each_attempt_has_one_holder(tmp_path):
    racers = [FORK.Process(target=race, args=(tmp_path, racer)) for racer in range(RACERS)]
    for process in racers:
        process.start()
    for process in racers:
        process.join(120)
    killed = [process.exitcode for process in racers].count(-signal.SIGKILL)
    assert killed == RACERS // 2
    notes = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    begun = [int(number) for what, number in notes if what == "begin"]
    assert begun == list(range(1, RACERS * ROUNDS + 1)), "an attempt had two holders, or none"
    for (what, number), (_, after) in pairwise(notes):
        assert what == "begin" or int(after) == int(number) + 1
    unfinished = [i for i, note in enumerate(notes) if ["end", note[1]] not in notes]
    assert len(unfinished) == killed
    together = [a for a, b in pairwise(notes) if a[0] == b[0] == "begin"]
    assert len(together) <= killed, "an attempt began before a living one had ended"


def test_a_killed_holder_is_replaced_at_once(driver, tmp_path):
    process, _ = driver(3600)
    process.kill()  # and not waited for: a zombie is dead, too
    wait_for(
        lambda: Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").split()[2] == "Z"
    )
    with holding(tmp_path, 3600) as attempt:
        assert attempt.fence.attempt == 2
        assert f"process {process.pid} on" in attempt.took_over
        assert "is gone" in attempt.took_over
        event = attempt.event()
    assert event["attempt"] == 2
    assert event["message"].startswith("attempt 2 took over from attempt 1 (")


def test_a_frozen_holder_is_replaced_when_its_lease_expires_and_refused_when_it_wakes(
    driver, tmp_path
):
    process, go_on = driver(1.0)
    with pytest.raises(InputError, match=r"is being run by attempt 1 \(process \d+ on "):
        holding(tmp_path, 1.0).__enter__()
    os.kill(process.pid, signal.SIGSTOP)

    def silent() -> bool:
        stored = Lease.parse((tmp_path / "attempts" / "1.json").read_bytes())
        return stored is not None and time.monotonic() - stored.clock > 1.0

    wait_for(silent)
    with holding(tmp_path, 60) as attempt:
        assert attempt.took_over.endswith("was silent for 1 s")
        os.kill(process.pid, signal.SIGCONT)
        go_on.set()
        process.join(60)
        assert (tmp_path / "may-1").read_text() == "False"
        attempt.fence.check()
    with pytest.raises(Superseded, match=r"attempt 2 .* has taken over .*: attempt 1 writes"):
        Fence(tmp_path / "attempts", 1).check()


def elsewhere(monkeypatch) -> None:
    """This process is on another host from now on."""
    monkeypatch.setattr(Process, "this", lambda: Process("other", os.getpid(), 7, "other"))


def test_a_holder_on_another_host_is_seen_to_live(driver, tmp_path, monkeypatch):
    driver(1.0)
    elsewhere(monkeypatch)
    told: list[str] = []
    with pytest.raises(InputError, match="is being run by attempt 1"):
        holding(tmp_path, 60, told.append).__enter__()
    assert len(told) == 1
    assert "watching it for 1 s" in told[0]


@pytest.mark.parametrize("ahead", [-1e6, 1e6])
def test_a_holder_on_another_host_must_be_silent_by_our_own_clock(tmp_path, monkeypatch, ahead):
    with holding(tmp_path, 60) as attempt:
        stored = replace(attempt.lease.renew(), seconds=1.0)
    clocks = {"clock": stored.clock + ahead, "renewed": stored.renewed + ahead}
    (tmp_path / "attempts" / "1.json").write_bytes(replace(stored, **clocks).content())
    elsewhere(monkeypatch)
    begun = time.monotonic()
    with holding(tmp_path, 60) as attempt:
        assert attempt.fence.attempt == 2
        assert time.monotonic() - begun > 1.0


def test_who_died_before_saying_who_it_was_is_replaced(tmp_path):
    (tmp_path / "attempts").mkdir()
    (tmp_path / "attempts" / "1.json").touch()
    with holding(tmp_path, 1.0) as attempt:
        assert attempt.fence.attempt == 2


def test_a_run_that_was_given_back_is_taken_without_waiting(tmp_path, monkeypatch):
    for number in (1, 2):
        with holding(tmp_path, 3600) as attempt:
            assert attempt.fence.attempt == number
            assert not attempt.took_over
    elsewhere(monkeypatch)
    with holding(tmp_path, 3600) as attempt:
        assert attempt.fence.attempt == 3
    assert newest(tmp_path) == 3
    assert json.loads((tmp_path / "attempts" / "3.json").read_text())["ended"]


def test_without_a_lease_everybody_may_write():
    Fence().check()
    assert not Fence().lost()


def test_stop_asks_the_holder_and_nobody_else(driver, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nobody is running"):
        ask_to_end(tmp_path)
    process, _ = driver(60.0)
    with monkeypatch.context() as elsewhere:
        there = replace(Process.this(), place="another host")
        elsewhere.setattr(Process, "this", classmethod(lambda cls: there))
        with pytest.raises(InputError, match="send that process SIGTERM there"):
            ask_to_end(tmp_path)
    assert process.is_alive()
    assert ask_to_end(tmp_path).pid == process.pid
    process.join(60)
    assert process.exitcode == -signal.SIGTERM
    with pytest.raises(InputError, match="which is gone"):
        ask_to_end(tmp_path)


@pytest.mark.reliability(
    11, "a lease is read strictly: process -1, which is every process, is sent no SIGTERM"
)
def test_a_lease_of_another_shape_is_none(tmp_path, monkeypatch):
    """What is no process number must not reach kill."""
    here, killed = Process.this(), []
    monkeypatch.setattr(os, "kill", lambda *given: killed.append(given))
    whole = json.loads(Lease(1, here, 1e9, 1e9, 1.0, 60.0).content())
    assert Lease.parse(json.dumps(whole).encode())
    (tmp_path / "attempts").mkdir()
    for field, values in {
        "holder": [{**whole["holder"], "pid": -1, "born": None}, {**whole["holder"], "pid": 0}, 7],
        "seconds": [0, -1, 1e18, "60", None, float("nan")],
        "began": [1e300, "x", -1],
        "ended": ["no", 7],
    }.items():
        for value in values:
            content = json.dumps({**whole, field: value}).encode()
            assert Lease.parse(content) is None, value
            (tmp_path / "attempts" / "1.json").write_bytes(content)
            with pytest.raises(InputError, match="nothing to stop"):
                ask_to_end(tmp_path)
    assert not killed
    for content in (b"[" * 100_000, b"1" * 5000, b"\xff", b"null"):
        assert Lease.parse(content) is None
