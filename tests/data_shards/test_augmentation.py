"""Augmentation is drawn by (seed, epoch, sample), and as the papers draw it."""

import numpy as np
import pytest

from data_shards.augmentation import AugmentationSettings, augment, centres

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


CROP = AugmentationSettings(crop=(0.08, 1.0))


def cropped(stored, settings=CROP):
    samples = np.arange(len(stored))
    return augment(settings, 3, 0 * samples, samples, SIZE, np.array(stored)).cropped


def test_parts_lie_inside_and_are_as_published():
    stored = np.array([(375, 500), (500, 333), (256, 256)] * 4000)
    top, left, height, width = cropped(stored).T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= stored[:, 0]).all() and (left + width <= stored[:, 1]).all()
    share = height * width / stored.prod(axis=1)
    aspect = width / height
    assert 0.078 < share.min() < 0.09 and 0.95 < share.max() <= 1
    assert 0.74 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.36
    assert (top == 0).any() and (top + height == stored[:, 0]).any()


def test_parts_depend_on_sample_and_epoch_alone():
    samples, epoch = np.arange(200), np.arange(200) % 2
    stored = np.stack([200 + samples, 300 - samples], axis=1)
    whole = augment(CROP, 3, epoch, samples, SIZE, stored).cropped
    turned = augment(CROP, 3, epoch[::-1], samples[::-1], SIZE, stored[::-1]).cropped
    assert np.array_equal(whole, turned[::-1])
    others = augment(CROP, 3, 1 - epoch, samples, SIZE, stored).cropped
    assert (whole == others).all(axis=1).mean() < 0.05, "middles, where no part fitted"


def test_parts_are_distributed_as_a_plain_rejection_loop_draws_them():
    """Mean and deviation of corner and size, against the usual algorithm with a generator."""
    rng, found = np.random.default_rng(0), []
    height, width = 300, 260
    for _ in range(10_000):
        for _ in range(10):
            area = rng.uniform(0.08, 1) * height * width
            aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if w <= width and h <= height:
                found.append((rng.integers(height - h + 1), rng.integers(width - w + 1), h, w))
                break
    drawn = cropped([(height, width)] * 10_000)
    for ours, theirs in zip(drawn.T, np.array(found).T, strict=True):
        assert abs(ours.mean() - theirs.mean()) < 4 * theirs.std() / 100 + 0.2
        assert abs(ours.std() / theirs.std() - 1) < 0.05


def test_of_an_image_too_long_for_any_part_the_middle_is_shown():
    tall, broad = cropped([(1000, 10), (9, 900)], CROP.model_copy(update={"crop": (0.9, 1.0)}))
    assert tall.tolist() == [493, 0, 13, 10] and broad.tolist() == [0, 444, 9, 12]


def test_the_middle_of_256_pixels_is_224():
    stored = np.array([(256, 256), (256, 341), (512, 512), (7, 1000)])
    parts = centres(0.875, (224, 224), stored)
    assert parts.tolist() == [
        *([16, 16, 224, 224], [16, 58, 224, 224], [32, 32, 448, 448], [0, 497, 6, 6]),
    ]
    assert centres(1.0, (100, 50), np.array([(300, 300)])).tolist() == [[0, 75, 300, 150]]


@pytest.mark.parametrize("crop", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5)])
def test_impossible_parts_are_refused(crop):
    with pytest.raises(ValueError, match=r"crop \[.*\] must ascend"):
        AugmentationSettings(crop=crop)
