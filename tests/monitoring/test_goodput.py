"""Goodput: of runs laid out by hand, second by second."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.goodput import account, summary_line, useful_shares


def training(phase, time, iteration, iterations, seconds, wait=0.0):
    return {
        "phase": phase,
        "time": time,
        "iteration": iteration,
        "iterations": iterations,
        "seconds": seconds,
        "data_wait_share": wait,
    }


def finished(kind, start, end, cpus=2, gpus=0, **others):
    facts = {"phase": "a" if kind == "train" else f"a/{kind}", "kind": kind, **others}
    return {**facts, "started": start, "finished": end, "cpus": cpus, "gpus": gpus}


def event(name, time, **others):
    return {"event": name, "time": time, **others}


def test_an_undisturbed_run():
    ledger = [finished("train", 100, 140, gpus=4), finished("evaluate", 140, 150)]
    records = [training("a", 120, 10, 10, 10, wait=0.2), training("a", 130, 20, 10, 10)]
    found = account(ledger, records, [event("attempt", 100)])
    assert found.seconds == pytest.approx(
        {"training": 18, "input": 2, "repeated": 0, "cpu": 10, "restarting": 0, "other": 20}
    )
    assert found.share == pytest.approx(18 / 50) and found.stopped == 0
    assert found.allocated["train"].gpu == pytest.approx(4 * 40 / 3600)
    assert found.allocated["evaluate"].cpu == pytest.approx(2 * 10 / 3600)
    assert summary_line(found) == "goodput 36.0% of 0.01 h; no restarts"


def test_workers_and_the_run_were_started_again():
    """Workers die at 25 with iterations 11-20 not saved; the driver at 60, and is back at 100."""
    records = [
        training("a", 10, 10, 10, 10),
        training("a", 20, 20, 10, 10),  # is repeated
        training("a", 45, 20, 10, 10),
        training("a", 55, 30, 10, 10),  # half of it is
        training("a", 120, 35, 10, 10),
    ]
    events = [
        event("attempt", 0),
        event("restart", 30, rank=0),
        event("restart", 30, rank=1),
        event("attempt", 100),
    ]
    found = account([finished("train", 100, 125)], records, events)
    assert found.seconds == pytest.approx(
        {
            "training": 10 + 10 + 5 + 10,
            "input": 0,
            "repeated": 10 + 5,
            "cpu": 0,
            "restarting": (35 - 20) + (110 - 100),
            "other": 5,
        }
    )
    assert found.total == 55 + 25 and found.stopped == 45
    assert (found.attempts, found.worker_restarts) == (2, 1)
    assert "1 restarts of the run and 1 of its workers cost 0.7 min" in summary_line(found)


def test_nothing_yet_and_runs_of_before():
    assert account([], [], []) is None
    found = account([finished("evaluate", 0, 10)], [], [])
    assert found.attempts == 1 and found.seconds["cpu"] == 10


@pytest.mark.parametrize(
    ("where", "use", "seconds"),
    [("actors", "cpu", 30), ("driver", "other", 30), ("ranks", "training", 20)],
)
def test_a_kind_that_nobody_knew_counts_by_where_its_work_was_done(where, use, seconds):
    """So does when a restart is over: with the next record's beginning, or a phase's."""
    ledger = [finished("distil", 100, 130, where=where, phase="a/distil", gpus=2)]
    trained = where == "ranks"
    records = [training("a/distil", 125, 10, 10, 20)] if trained else []
    found = account(ledger, records, [event("attempt", 90), event("attempt", 95)])
    spent = {use: s for use, s in found.seconds.items() if s}
    assert spent.pop("restarting") == (105 if trained else 100) - 95
    assert spent.pop(use) == pytest.approx(seconds)
    assert spent == ({"other": pytest.approx(5)} if trained else {})
    assert found.allocated["distil"].gpu == pytest.approx(2 * 30 / 3600)


def test_ledgers_of_before_tell_where_by_records_of_training_and_gpus():
    ledger = [
        finished("train", 0, 20),
        finished("train", 20, 40, phase="its/records/were/too/many", gpus=8),
        finished("train", 38, 40, phase="a/twin", same_as="a"),
        finished("evaluate", 40, 50),
    ]
    line = {"phase": "a", "iteration": 10}  # of before lines said how long they took
    found = account(ledger, [line], [event("attempt", 0)])
    assert {use: s for use, s in found.seconds.items() if s} == {"cpu": 10, "other": 40}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), min_size=1, max_size=12))
def test_every_iteration_is_useful_once(stretches):
    """Against a list that says which record did each iteration last."""
    records = [training("a", t, first + n, n, 1.0) for t, (first, n) in enumerate(stretches)]
    owner = {}
    for number, (first, count) in enumerate(stretches):
        for iteration in [i for i in owner if i > first]:
            del owner[iteration]  # training went back to here: what came after is done again
        owner |= {first + i + 1: number for i in range(count)}
    shares = [0.0] * len(records)
    for share, record in useful_shares(records):
        shares[record["time"]] = share
    for number, (_, count) in enumerate(stretches):
        kept = sum(1 for n in owner.values() if n == number)
        assert shares[number] == pytest.approx(kept / count)
