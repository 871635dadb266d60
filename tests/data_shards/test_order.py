import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.order import AugmentationSettings, Order, augment, rank_slice

SAMPLES = np.arange(100, 237)


@given(st.integers(0, 5), st.integers(1, 40))
def test_every_epoch_has_every_sample_once_at_any_batch_size(seed, batch):
    order = Order(SAMPLES, seed)
    stream = np.concatenate(
        [order.at(np.arange(i * batch, (i + 1) * batch)) for i in range(-(-3 * 137 // batch))]
    )
    for epoch in range(3):
        assert sorted(stream[epoch * 137 : (epoch + 1) * 137]) == SAMPLES.tolist()


def test_epochs_differ():
    order = Order(SAMPLES, 0)
    assert not np.array_equal(order.at(np.arange(137)), order.at(np.arange(137, 274)))


@given(st.integers(1, 60), st.integers(1, 12))
def test_rank_slices_tile_the_batch(batch, world):
    parts = [rank_slice(batch, rank, world) for rank in range(world)]
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(batch))
    sizes = [p.stop - p.start for p in parts]
    assert max(sizes) - min(sizes) <= 1


def test_augmentation_depends_on_sample_and_epoch_alone():
    settings = AugmentationSettings(flip=True, shift=3)
    epochs = np.arange(500) // 250
    samples = np.arange(500) % 250
    whole = augment(settings, 4, epochs, samples)
    turned = augment(settings, 4, epochs[::-1], samples[::-1])
    assert np.array_equal(whole.flipped, turned.flipped[::-1])
    assert np.array_equal(whole.shift, turned.shift[::-1])
    assert 180 < whole.flipped.sum() < 320
    assert set(np.unique(whole.shift)) == set(range(-3, 4))
    assert not np.array_equal(whole.flipped[:250], whole.flipped[250:])


def test_half_of_the_images_are_mirrored_and_the_axes_move_apart():
    samples = np.arange(10_000)
    settings = AugmentationSettings(flip=True, shift=3)
    drawn = augment(settings, 0, np.zeros_like(samples), samples)
    assert abs(drawn.flipped.mean() - 0.5) < 0.02
    down, right = drawn.shift.T
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.05
    assert abs(np.corrcoef(down, drawn.flipped)[0, 1]) < 0.05


def test_positions_know_their_epoch():
    order = Order(SAMPLES, 0)
    assert order.epoch(np.array([0, 136, 137, 273, 274])).tolist() == [0, 0, 1, 1, 2]


def test_an_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        Order(SAMPLES[:0], 0)
