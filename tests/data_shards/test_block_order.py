"""Windows of shards: complete epochs, and few shards needed at a time."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_shards.orders.block_order import BlockOrder

SHARD = np.repeat(np.arange(23), 1 + np.arange(23) * 7 % 11)
SAMPLES = np.random.default_rng(0).permutation(len(SHARD))[:100]  # of only some of the images


def order(window=4, seed=2):
    return BlockOrder(SAMPLES, SHARD[SAMPLES], window, seed)


@given(st.integers(1, 30), st.integers(0, 5))
def test_every_epoch_has_every_sample_once_in_another_order(window, seed):
    epochs = order(window, seed).at(np.arange(300)).reshape(3, 100)
    assert (np.sort(epochs) == np.sort(SAMPLES)).all()
    assert len(np.unique(epochs, axis=0)) == 3


@given(st.integers(1, 30), st.integers(0, 399))
def test_a_sample_lies_in_the_shards_announced_for_its_position(window, position):
    blocks = order(window)
    announced = blocks.shards_ahead(position)
    assert len(announced) <= 2 * window
    assert SHARD[blocks.at(np.array([position]))[0]] in announced[:window]


def test_the_next_window_is_announced_too_across_epochs():
    announced = [tuple(order().shards_ahead(position).tolist()) for position in range(300)]
    windows = [a for n, a in enumerate(announced) if n == 0 or a != announced[n - 1]]
    shards = len(np.unique(SHARD[SAMPLES]))
    assert len(windows) == 3 * -(-shards // 4)
    for now, then in pairwise(windows):
        assert any(now[k:] == then[: len(now) - k] for k in range(1, len(now)))


def test_a_window_mixes_its_shards():
    first = SHARD[order(window=8).at(np.arange(20))]
    assert len(np.unique(first)) > 5


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=40))
def test_any_position_alone_gives_the_same_sample(positions):
    together = order().at(np.array(positions))
    assert [int(order().at(np.array([p]))[0]) for p in positions] == together.tolist()
