"""Image keys as 64-bit hashes: to find duplicates on import, and samples by key.

Two of 5.8 million keys share a hash with a probability of one in a million; the second would be
refused as a duplicate.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
_FRESH = 1 << 16


def key_hash(key: str) -> int:
    """The first eight bytes of a key's BLAKE2b, as a number."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


class TakenKeys:
    """A set of hashes at about 8 bytes each: sorted arrays of falling sizes, merged as it grows.

    A set of Python integers would take several times as much for millions of keys.
    """

    def __init__(self, hashes: Iterable[Hashes] = ()) -> None:
        self._sorted: list[Hashes] = []
        self._fresh: set[int] = set()
        for part in hashes:
            self._merge(np.sort(part))

    def known(self, hashes: list[int]) -> NDArray[np.bool_]:
        """[n] whether each of n hashes was added."""
        asked = np.array(hashes, dtype=np.uint64)
        found = np.fromiter((h in self._fresh for h in hashes), bool, len(hashes))
        for held in self._sorted:
            at = np.minimum(np.searchsorted(held, asked), len(held) - 1)
            found |= held[at] == asked
        return found

    def add(self, key: int) -> bool:
        """Adds a hash; False when it was added since the last merge (`known` checks all)."""
        if key in self._fresh:
            return False
        self._fresh.add(key)
        return True

    def merge_fresh(self) -> None:
        """Moves added hashes into the sorted arrays once there are `_FRESH` of them."""
        if len(self._fresh) >= _FRESH:
            fresh = np.fromiter(self._fresh, np.uint64, len(self._fresh))
            self._fresh.clear()
            self._merge(np.sort(fresh))

    def _merge(self, new: Hashes) -> None:
        while self._sorted and len(self._sorted[-1]) <= len(new):
            new = np.sort(np.concatenate([self._sorted.pop(), new]))
        if len(new):
            self._sorted.append(new)
