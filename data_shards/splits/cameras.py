"""The camera of each image, and a substitute where a dataset does not record it."""

import numpy as np
from numpy.typing import NDArray

from data_shards.sources import UNKNOWN_CAMERA
from data_shards.storage.dataset import ShardDataset

Ids = NDArray[np.int64]


def knows_cameras(dataset: ShardDataset) -> bool:
    """Whether the camera of any image is known."""
    return any(name != UNKNOWN_CAMERA for name in dataset.manifest["cameras"])


def cameras(dataset: ShardDataset, samples: Ids, apart: bool = False) -> Ids:
    """[n] the camera of each of `samples`; with `apart`, a different one for each.

    Images without a known camera get one of their own, too: two of them may be from different
    cameras, so neither may be dropped from a search for the other.
    """
    if apart:
        return samples
    camera = dataset.camera[samples].astype(np.int64)
    names = dataset.manifest["cameras"]
    if UNKNOWN_CAMERA in names:
        unknown = camera == names.index(UNKNOWN_CAMERA)
        camera[unknown] = len(names) + samples[unknown]
    return camera
