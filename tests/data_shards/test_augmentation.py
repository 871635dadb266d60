"""Augmentation is drawn by (seed, epoch, sample), and as the papers draw it."""

import numpy as np
import pytest

from data_shards.augmentation import AugmentationSettings, augment

SIZE = (256, 128)


def test_augmentation_depends_on_sample_and_epoch_alone():
    settings = AugmentationSettings(flip=True, shift=3)
    epochs = np.arange(500) // 250
    samples = np.arange(500) % 250
    whole = augment(settings, 4, epochs, samples, SIZE)
    turned = augment(settings, 4, epochs[::-1], samples[::-1], SIZE)
    assert np.array_equal(whole.flipped, turned.flipped[::-1])
    assert np.array_equal(whole.shift, turned.shift[::-1])
    assert 180 < whole.flipped.sum() < 320
    assert set(np.unique(whole.shift)) == set(range(-3, 4))
    assert not np.array_equal(whole.flipped[:250], whole.flipped[250:])


def test_half_of_the_images_are_mirrored_and_the_axes_move_apart():
    samples = np.arange(10_000)
    settings = AugmentationSettings(flip=True, shift=3)
    drawn = augment(settings, 0, np.zeros_like(samples), samples, SIZE)
    assert abs(drawn.flipped.mean() - 0.5) < 0.02
    down, right = drawn.shift.T
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.05
    assert abs(np.corrcoef(down, drawn.flipped)[0, 1]) < 0.05


def erased(count=20_000, size=SIZE, **settings):
    samples = np.arange(count)
    drawn = augment(
        AugmentationSettings(**{"erase": 0.5, **settings}), 0, 0 * samples, samples, size
    )
    return drawn.erased


def test_erased_rectangles_lie_inside_and_are_as_published():
    top, left, height, width = erased().T
    hit = height > 0
    assert abs(hit.mean() - 0.5) < 0.02
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 256).all() and (left + width <= 128).all()
    area, aspect = (height * width)[hit] / (256 * 128), (height / np.maximum(width, 1))[hit]
    assert 0.018 < area.min() < 0.025 and 0.38 < area.max() < 0.41
    assert 0.28 < aspect.min() < 0.35 and 3.1 < aspect.max() < 3.5


def test_erased_rectangles_are_distributed_as_a_plain_rejection_loop_draws_them():
    """Mean corner and size, against the published algorithm written out with a generator."""
    rng, found = np.random.default_rng(0), []
    while len(found) < 10_000:
        area, aspect = rng.uniform(0.02, 0.4) * 256 * 128, rng.uniform(0.3, 1 / 0.3)
        h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if h < 256 and w < 128:
            found.append((rng.integers(256 - h + 1), rng.integers(128 - w + 1), h, w))
    drawn = erased()
    ours = drawn[drawn[:, 2] > 0]
    for other, own in zip(np.array(found).T, ours.T, strict=True):
        assert abs(other.mean() - own.mean()) < 0.03 * other.mean() + 0.5
        assert abs(other.std() - own.std()) < 0.03 * other.std() + 0.5


@pytest.mark.parametrize("size", [(1, 1), (2, 50), (16, 16)])
def test_images_of_any_size_can_be_erased(size):
    top, left, height, width = erased(500, size, erase=1.0).T
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()


def test_erasing_is_independent_of_the_rest():
    """Asking for it does not change what is mirrored or moved."""
    samples = np.arange(1000)
    settings = AugmentationSettings(flip=True, shift=4)
    with_erasing = settings.model_copy(update={"erase": 0.5})
    a, b = (augment(s, 1, 0 * samples, samples, SIZE) for s in (settings, with_erasing))
    assert np.array_equal(a.flipped, b.flipped) and np.array_equal(a.shift, b.shift)
    assert not a.erased.any() and b.erased.any()
