"""Draws without replacement: every round complete, no block with an item twice."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_shards.counter_rng import permuted
from data_shards.orders.draws import rounds


def stream(count, block, key, length):
    every = np.ones(length, dtype=np.int64)
    keys = np.full(length, key, dtype=np.uint64)
    return rounds(count * every, block, keys, np.arange(length))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**63))
def test_rounds_are_complete_and_blocks_hold_nothing_twice(count, block, key):
    drawn = stream(count, block, key, 7 * count * block)
    for one in drawn.reshape(-1, count):
        assert sorted(one) == list(range(count))
    for one in drawn.reshape(-1, block):
        times = np.bincount(one, minlength=count)
        assert times.max() - times.min() <= 1 if count < block else times.max() == 1


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 99)), min_size=1), st.integers(1, 9))
def test_many_streams_at_once_are_each_alone(streams, block):
    count, position = (np.array(column) for column in zip(*streams, strict=True))
    keys = np.arange(len(streams), dtype=np.uint64)
    together = rounds(count, block, keys, position)
    for i, (n, at) in enumerate(streams):
        assert together[i] == stream(n, block, i, at + 1)[at]


def test_rounds_differ():
    drawn = stream(50, 4, 1, 5000).reshape(-1, 50)
    assert len(np.unique(drawn, axis=0)) == 100


def test_every_item_is_first_equally_often():
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    for count in (2, 3, 4, 5, 7, 12):
        every = np.full(len(keys), count)
        for position in (0, count - 1):
            first = permuted(every, keys, np.full(len(keys), position))
            share = np.bincount(first, minlength=count) * count / len(keys)
            assert abs(share - 1).max() < 0.1, (count, position, share)
