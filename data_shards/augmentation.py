"""How an image is augmented: a pure function of (seed, epoch, sample), applied by the pipeline."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_shards.counter_rng import bits, integers, stream_key, uniform
from data_shards.settings import Settings

Ids = NDArray[np.int64]
_ATTEMPTS = 100  # as published


class AugmentationSettings(Settings):
    """Random changes to training images, the same at any number of workers."""

    flip: bool = False
    """Mirror half of the images, at random. Never for characters."""
    shift: int = Field(default=0, ge=0)
    """Largest random shift in either direction, pixels: padding by as much and cropping."""
    fill: int = Field(default=0, ge=0, le=255)
    """Grey level of what a shift uncovers."""
    erase: float = Field(default=0.0, ge=0, le=1)
    """Share of the images of which a random rectangle is erased (random erasing)."""
    erase_area: tuple[float, float] = (0.02, 0.4)
    """Smallest and largest share of the image that is erased."""
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Smallest and largest height of the rectangle, as a multiple of its width."""
    erase_fill: tuple[int, int, int] = (124, 116, 104)
    """Red, green and blue (0-255) of what is erased; ImageNet's mean pixel."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to each of b images, in this order: shifted, mirrored, erased."""

    flipped: NDArray[np.bool_]
    """[b] mirrored left to right."""
    shift: NDArray[np.int64]
    """[b, 2] pixels down and right."""
    erased: NDArray[np.int64]
    """[b, 4] top, left, height and width of the rectangle, pixels; of no size: nothing is."""


def no_augmentation(count: int, flipped: bool = False) -> Augmentation:
    """`count` images as they are, or all mirrored."""
    shift, erased = (np.zeros((count, n), dtype=np.int64) for n in (2, 4))
    return Augmentation(np.full(count, flipped), shift, erased)


def augment(
    settings: AugmentationSettings, seed: int, epoch: Ids, samples: Ids, size: tuple[int, int]
) -> Augmentation:
    """The augmentation of `samples` ([b]), each in its `epoch` ([b]); `size` is (H, W)."""
    done = no_augmentation(len(samples))
    for e in np.unique(epoch).tolist():
        here = epoch == e
        own = samples[here]
        if settings.flip:
            done.flipped[here] = uniform(stream_key(seed, "flip", e), own) < 0.5
        for axis in range(2) if settings.shift else ():
            key = stream_key(seed, "shift", e, axis)
            done.shift[here, axis] = integers(key, own, -settings.shift, settings.shift)
        if settings.erase:
            done.erased[here] = _rectangles(settings, stream_key(seed, "erase", e), own, size)
    return done


def _rectangles(
    settings: AugmentationSettings, key: np.uint64, samples: Ids, size: tuple[int, int]
) -> Ids:
    """Random erasing (Zhong et al. 2020, algorithm 1): [b, 4] as in `Augmentation.erased`.

    Area and aspect ratio are drawn uniformly until the rectangle fits, at most 100 times.
    """
    height, width = size
    low, high = settings.erase_area
    flat, tall = settings.erase_aspect
    found = np.zeros((len(samples), 4), dtype=np.int64)
    pending = np.flatnonzero(uniform(key, samples) < settings.erase)
    for attempt in range(_ATTEMPTS):
        if not len(pending):
            break
        # a key an attempt, so that a sample's draws do not depend on which others are pending
        one = bits(key, np.array([attempt + 1]))[0]
        draw = uniform(one, 4 * samples[pending][:, None] + np.arange(4))
        area = (low + draw[:, 0] * (high - low)) * height * width
        aspect = flat + draw[:, 1] * (tall - flat)
        h = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        w = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        top = np.floor(draw[:, 2] * (height - h + 1)).astype(np.int64)
        left = np.floor(draw[:, 3] * (width - w + 1)).astype(np.int64)
        fits = (h < height) & (w < width)
        found[pending[fits]] = np.stack([top, left, h, w], axis=1)[fits]
        pending = pending[~fits]
    return found
