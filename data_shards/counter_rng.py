"""Counter-based randomness: pure functions of (seed, stream, index), equal on every machine.

A draw needs no generator state, so any rank can compute any sample's draw, a resumed run needs
nothing but its position, and the result does not change with NumPy's or PyTorch's version.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 4  # enough for long permutations; changing it would change every order
_ROUNDS_SHORT = 8  # a short one needs twice as many before every order is equally likely


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014), a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def stream_key(seed: int, *stream: int | str) -> np.uint64:
    """A 64-bit key for a named stream of draws under `seed`."""
    text = "/".join([str(seed), *map(str, stream)])
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def bits(key: np.uint64 | NDArray[np.uint64], index: NDArray[np.integer]) -> NDArray[np.uint64]:
    """64 random bits for each of `index` ([n], non-negative), under one key or [n]."""
    with np.errstate(over="ignore"):
        return _mix(_mix(index.astype(np.uint64) * _GAMMA + key) + _GAMMA)


def uniform(key: np.uint64, index: NDArray[np.integer]) -> NDArray[np.float64]:
    """A uniform draw in [0, 1) with 53 bits for each of `index` ([n])."""
    return (bits(key, index) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(key: np.uint64, index: NDArray[np.integer], low: int, high: int) -> NDArray[np.int64]:
    """A draw from {low, ..., high} (both included) for each of `index` ([n])."""
    return low + np.floor(uniform(key, index) * (high - low + 1)).astype(np.int64)


def shuffled(key: np.uint64, items: NDArray[np.int64]) -> NDArray[np.int64]:
    """`items` in a random order that depends on `key` and the items' positions alone."""
    return items[np.argsort(bits(key, np.arange(len(items))), kind="stable")]


def _feistel(
    x: NDArray[np.uint64], half: NDArray[np.uint64] | np.uint64, keys: list[Any]
) -> NDArray[np.uint64]:
    """Permutes words of 2 · `half` bits, a round for each of `keys`."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (bits(key, right) & mask)
    return (left << half) | right


def permuted(
    count: NDArray[np.int64], key: NDArray[np.uint64], position: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The items at `position` of random permutations of range(`count`), one for each `key`.

    All [m], with 0 ≤ position < count: as `Permutation`, for many permutations at once.
    """
    # frexp's exponent is the bit length, which arrays have no method for
    half = np.maximum(1, -(-np.frexp(np.maximum(count - 1, 1))[1] // 2)).astype(np.uint64)
    keys = [bits(key, np.full(len(key), r)) for r in range(_ROUNDS_SHORT)]
    x = _feistel(position.astype(np.uint64), half, keys)
    while len(outside := np.flatnonzero(x >= count.astype(np.uint64))):
        x[outside] = _feistel(x[outside], half[outside], [k[outside] for k in keys])
    return x.astype(np.int64)


class Permutation:
    """A random permutation of range(n), evaluated at any position without storing it.

    A four-round Feistel network over the smallest even-width binary domain that holds n, walked
    until it lands below n (Black and Rogaway 2002). Opening it costs nothing, whatever n is.
    """

    def __init__(self, n: int, key: np.uint64) -> None:
        self._n = n
        self._half = np.uint64(max(1, -(-max(n - 1, 1).bit_length() // 2)))
        self._keys = [stream_key(int(key), "round", r) for r in range(_ROUNDS)]

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The items at `positions` ([m], each in [0, n))."""
        x = _feistel(positions.astype(np.uint64), self._half, self._keys)
        while (outside := x >= np.uint64(self._n)).any():
            x[outside] = _feistel(x[outside], self._half, self._keys)
        return x.astype(np.int64)
