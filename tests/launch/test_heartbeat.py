"""Who holds a group up is found from what its ranks say, and from who says nothing."""

import subprocess
import sys

import psutil
import pytest

from launch.execution.heartbeat import Beat, Standing, diagnose, end_process
from trainer.activity import Activity, Doing

PHASE = "fkd/seed-0/step-1/train"


def beat(rank, what="forward", turns=7, seconds=0.1, silent=0.5, phase=PHASE):
    return Beat(phase, rank, "n", 1, 0.0, Doing(what, turns, seconds), silent)


def test_all_is_well():
    assert diagnose([beat(0), beat(1)], 60, 600) == ([], "")
    assert diagnose([], 60, 600) == ([], "")


def test_a_process_that_was_itself_stopped_has_not_stood_still():
    now, begun = [0.0], 0.0
    standing = Standing(lambda: now[0])

    def stands(turns, by):
        now[0] += by
        return standing.look(Doing("forward", turns, now[0] - begun)).seconds

    assert [stands(7, by) for by in (0.2, 0.2, 3.0)] == pytest.approx([0.0, 0.2, 3.2])
    assert stands(7, 1800) == pytest.approx(8.2)  # stopped for half an hour
    assert stands(7, 0.2) == pytest.approx(8.4)
    assert stands(8, 0.2) == 0.0
    assert sum(stands(8, 0.25) for _ in range(4)) == pytest.approx(0.25 + 0.5 + 0.75 + 1.0)


def test_silence_is_found_and_named():
    beats = [beat(0, "gathering embeddings", seconds=61), beat(1, "reading input", silent=61)]
    guilty, why = diagnose(beats, 60, 600)
    assert guilty == [beats[1]]
    assert why == (
        "rank 1 has been silent for 61 s in fkd/seed-0/step-1/train while 'reading input'; "
        "rank 0 is at 'gathering embeddings'"
    )


def test_of_those_that_stand_still_the_one_behind_is_to_blame():
    beats = [beat(0, "gathering embeddings", 9, 700), beat(1, "reading input", 6, 701)]
    guilty, why = diagnose(beats, 60, 600)
    assert [b.rank for b in guilty] == [1]
    assert why.startswith("rank 1 has been at 'reading input' in fkd/seed-0/step-1/train for 701 s")


def test_a_collective_that_hangs_for_all_is_everybodys():
    beats = [beat(0, "backward", 9, 700), beat(1, "backward", 9, 700)]
    guilty, why = diagnose(beats, 60, 600)
    assert [b.rank for b in guilty] == [0, 1]
    assert why.startswith("ranks 0, 1 have been at 'backward'")


def test_waiting_for_a_slow_rank_that_moves_is_no_fault():
    assert diagnose([beat(0, turns=9, seconds=700), beat(1, turns=8, seconds=1)], 60, 600)[0] == []


def test_who_waits_for_a_job_does_not_stall_and_must_not_fall_silent():
    waits = beat(1, "waiting for a job", 1, 5000, phase="")
    assert diagnose([beat(0), waits], 60, 600) == ([], "")
    silent = beat(1, "waiting for a job", 1, 5000, silent=61, phase="")
    guilty, why = diagnose([beat(0), silent], 60, 600)
    assert guilty == [silent]
    assert why.startswith("rank 1 has been silent for 61 s while 'waiting for a job'; rank 0 is at")


def test_a_pulse_says_what_and_for_how_long():
    activity = Activity()
    activity.turn("reading input")
    before = activity.read()
    while activity.read().seconds == before.seconds:
        pass
    activity.turn("forward")
    after = activity.read()
    assert (before.what, after.what) == ("reading input", "forward")
    assert after.turns == before.turns + 1


def test_a_frozen_process_is_ended_but_never_another_with_its_number():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    process = psutil.Process(child.pid)
    born = process.create_time()
    process.suspend()
    assert not end_process(child.pid, born - 1)
    assert process.is_running()
    assert end_process(child.pid, born)
    assert child.wait() < 0
    assert not end_process(child.pid, born)
