"""How an image is augmented: a pure function of (seed, epoch, sample), applied by the pipeline."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from data_shards.counter_rng import bits, integers, stream_key, uniform
from data_shards.settings import Settings

Ids = NDArray[np.int64]
_ATTEMPTS = 100  # as published
_CROPS = 10  # attempts, as all who train on ImageNet have them


class AugmentationSettings(Settings):
    """Random changes to training images, the same at any number of workers."""

    crop: tuple[float, float] | None = None
    """Smallest and largest share of an image that is shown of it, a random part scaled to the size
    of all (random resized crop); [0.08, 1] is customary for ImageNet. None: the whole image."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width of that part, as a multiple of its height."""
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

    @model_validator(mode="after")
    def _parts_have_a_size(self) -> "AugmentationSettings":
        for key, (low, high), most in (
            ("crop", self.crop or (1.0, 1.0), 1.0),
            ("crop_aspect", self.crop_aspect, math.inf),
        ):
            if not 0 < low <= high <= most:
                raise ValueError(f"{key} [{low:g}, {high:g}] must ascend and lie above 0, up to 1")
        return self

    def deciding(self) -> dict[str, Any]:
        values = super().deciding()
        if self.crop is None:  # as fingerprints were before there were these keys
            del values["crop"], values["crop_aspect"]
        return values


@dataclass(frozen=True)
class Augmentation:
    """What is done to each of b images, in this order: cropped, shifted, mirrored, erased."""

    flipped: NDArray[np.bool_]
    """[b] mirrored left to right."""
    shift: NDArray[np.int64]
    """[b, 2] pixels down and right."""
    erased: NDArray[np.int64]
    """[b, 4] top, left, height and width of the rectangle, pixels; of no size: nothing is."""
    cropped: NDArray[np.int64] | None = None
    """[b, 4] the same of the part that is shown, pixels of the stored image; none: all of it."""


def no_augmentation(count: int, flipped: bool = False) -> Augmentation:
    """`count` images as they are, or all mirrored."""
    shift, erased = (np.zeros((count, n), dtype=np.int64) for n in (2, 4))
    return Augmentation(np.full(count, flipped), shift, erased)


def augment(
    settings: AugmentationSettings,
    seed: int,
    epoch: Ids,
    samples: Ids,
    size: tuple[int, int],
    stored: Ids | None = None,
) -> Augmentation:
    """The augmentation of `samples` ([b]), each in its `epoch` ([b]); `size` is (H, W).

    To crop, the height and width of each as it is `stored` must be known ([b, 2]).
    """
    done = no_augmentation(len(samples))
    if settings.crop is not None:
        assert stored is not None
        done = replace(done, cropped=np.zeros((len(samples), 4), dtype=np.int64))
    for e in np.unique(epoch).tolist():
        here = epoch == e
        own = samples[here]
        if done.cropped is not None and stored is not None:
            key = stream_key(seed, "crop", e)
            done.cropped[here] = _parts(settings, key, own, stored[here])
        if settings.flip:
            done.flipped[here] = uniform(stream_key(seed, "flip", e), own) < 0.5
        for axis in range(2) if settings.shift else ():
            key = stream_key(seed, "shift", e, axis)
            done.shift[here, axis] = integers(key, own, -settings.shift, settings.shift)
        if settings.erase:
            done.erased[here] = _rectangles(settings, stream_key(seed, "erase", e), own, size)
    return done


def centres(share: float, size: tuple[int, int], stored: Ids) -> Ids:
    """[b, 4] as in `Augmentation.cropped`: in the middle of images `stored` that large ([b, 2]),
    the part of the shape of `size` (H, W) whose sides are a `share` of the largest such part's."""
    scale = share * np.min(stored / np.array(size), axis=1, keepdims=True)
    shape = np.clip(np.rint(scale * np.array(size)).astype(np.int64), 1, stored)
    return np.concatenate([(stored - shape) // 2, shape], axis=1)


def _parts(settings: AugmentationSettings, key: np.uint64, samples: Ids, stored: Ids) -> Ids:
    """Random parts (Szegedy et al. 2015, Sec. 6): [b, 4] as in `Augmentation.cropped`.

    Area uniformly and aspect ratio uniformly in its logarithm, until the part fits, at most ten
    times; then the largest part in the middle with an aspect ratio that is allowed.
    """
    assert settings.crop is not None
    (low, high), (flat, wide) = settings.crop, np.log(settings.crop_aspect)
    height, width = stored.T
    found = np.zeros((len(samples), 4), dtype=np.int64)
    pending = np.arange(len(samples))
    for attempt in range(_CROPS):
        one = bits(key, np.array([attempt]))[0]
        draw = uniform(one, 4 * samples[pending][:, None] + np.arange(4))
        area = (low + draw[:, 0] * (high - low)) * (height * width)[pending]
        aspect = np.exp(flat + draw[:, 1] * (wide - flat))
        h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        top = np.floor(draw[:, 2] * (height[pending] - h + 1)).astype(np.int64)
        left = np.floor(draw[:, 3] * (width[pending] - w + 1)).astype(np.int64)
        fits = (h > 0) & (w > 0) & (h <= height[pending]) & (w <= width[pending])
        found[pending[fits]] = np.stack([top, left, h, w], axis=1)[fits]
        pending = pending[~fits]
    low_aspect, high_aspect = settings.crop_aspect
    h = np.minimum(height, np.rint(width / low_aspect).astype(np.int64))[pending]
    w = np.minimum(width, np.rint(height * high_aspect).astype(np.int64))[pending]
    middle = (height[pending] - h) // 2, (width[pending] - w) // 2
    found[pending] = np.stack([*middle, h, w], axis=1)
    return found


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
