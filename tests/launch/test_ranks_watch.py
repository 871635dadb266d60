"""Ranks under torchrun alone end where one, or the store, is silent; real processes and store."""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from launch.execution.ranks_watch import RanksWatch
from tests.monitoring.prometheus import free_port
from tests.ranks import CONTEXT

SILENT = 6.0  # a busy machine may hold a process up for seconds


def serve(port):
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    assert store.set("up", "1") is None
    time.sleep(600)


def work(rank, port, folder):
    """A rank that waits in a collective for ever."""
    os.dup2(os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT), 2)
    store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=SILENT))
    with RanksWatch(dist.PrefixStore("x", store), rank, 3, SILENT):
        store.set(f"at-work-{rank}", "1")
        time.sleep(600)


@pytest.fixture
def started(tmp_path):
    """The store's process and three ranks, all at work."""
    port = free_port()
    store = CONTEXT.Process(target=serve, args=(port,))
    store.start()
    client = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))
    ranks = [CONTEXT.Process(target=work, args=(rank, port, tmp_path)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    client.wait([f"at-work-{rank}" for rank in range(3)])
    yield store, ranks
    for process in (store, *ranks):
        process.kill()
        process.join()


def ended(ranks, folder, *numbers):
    """What each of the ranks said when it ended by itself."""
    for number in numbers:
        ranks[number].join(60)
        assert ranks[number].exitcode == 1, number
    return [(folder / f"said-{number}").read_text() for number in numbers]


@pytest.mark.parametrize("lost", [0, 2])
def test_one_that_is_silent_ends_the_others(started, tmp_path, lost):
    _, ranks = started
    os.kill(ranks[lost].pid, signal.SIGSTOP)
    others = sorted({0, 1, 2} - {lost})
    for said in ended(ranks, tmp_path, *others):
        assert f"error: rank {lost} has not been heard of for " in said
    assert ranks[lost].is_alive()


def test_a_store_that_is_silent_ends_all(started, tmp_path):
    store, ranks = started
    os.kill(store.pid, signal.SIGSTOP)
    for said in ended(ranks, tmp_path, 0, 1, 2):
        assert "torchrun's store, on the first host, has not answered for " in said


def test_who_was_stopped_itself_blames_nobody_and_an_end_is_no_silence():
    said = []
    store = dist.HashStore()
    watch = RanksWatch(store, 0, 2, 3.0, said.append)
    watch._looks = watch._answered = 100  # as after an hour's stop: few looks, no answer between
    watch._heard[1] = b"7", 98
    assert not watch._silence()
    watch._looks = 104
    assert "store" in watch._silence()
    watch._answered = 102
    assert "rank 1 has" in watch._silence()
    with RanksWatch(store, 0, 1, SILENT, said.append):
        pass
    assert not said
