import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.orders.order import UniformOrder, rank_slice

SAMPLES = np.arange(100, 237)


@given(st.integers(0, 5), st.integers(1, 40))
def test_every_epoch_has_every_sample_once_at_any_batch_size(seed, batch):
    order = UniformOrder(SAMPLES, seed)
    stream = np.concatenate(
        [order.at(np.arange(i * batch, (i + 1) * batch)) for i in range(-(-3 * 137 // batch))]
    )
    for epoch in range(3):
        assert sorted(stream[epoch * 137 : (epoch + 1) * 137]) == SAMPLES.tolist()


def test_epochs_differ():
    order = UniformOrder(SAMPLES, 0)
    assert not np.array_equal(order.at(np.arange(137)), order.at(np.arange(137, 274)))


@given(st.integers(1, 60), st.integers(1, 12))
def test_rank_slices_tile_the_batch(batch, world):
    parts = [rank_slice(batch, rank, world) for rank in range(world)]
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(batch))
    sizes = [p.stop - p.start for p in parts]
    assert max(sizes) - min(sizes) <= 1


def test_positions_know_their_epoch():
    order = UniformOrder(SAMPLES, 0)
    assert order.epoch(np.array([0, 136, 137, 273, 274])).tolist() == [0, 0, 1, 1, 2]


def test_an_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        UniformOrder(SAMPLES[:0], 0)
