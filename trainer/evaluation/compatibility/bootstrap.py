"""The bootstrap: resampling of identities, and intervals of a resampled figure."""

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import stream_key

Floats = NDArray[np.float64]


def resampled(identities: int, resamples: int) -> NDArray[np.int64]:
    """[resamples, identities] how often each identity is drawn; every row adds up to `identities`.

    Whole identities are drawn, because the queries of one identity are not independent (cluster
    bootstrap). The draws are always the same, so that two models are compared on the same ones.
    """
    draw = np.random.default_rng(int(stream_key(identities, "resamples")))
    drawn = draw.integers(identities, size=(resamples, identities))
    counts = np.zeros((resamples, identities), dtype=np.int64)
    for row, own in zip(counts, drawn, strict=True):
        row += np.bincount(own, minlength=identities)
    return counts


def interval(values: Floats, confidence: float) -> tuple[float, float]:
    """The central interval that holds a share `confidence` of resampled `values`.

    Resamples without a trial of some kind (NaN) are left out.
    """
    low, high = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def lower_bound(values: Floats, confidence: float) -> float:
    """The one-sided lower bound that a share `confidence` of resampled `values` exceeds."""
    return float(np.nanquantile(values, 1 - confidence))
