"""Identity-balanced batches: P identities × K images, for losses that compare within a batch."""

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import bits, stream_key
from data_shards.orders.draws import rounds

Ids = NDArray[np.int64]
_TRIES = 8  # other images of an identity, before the next identity stands in for it


class IdentityOrder:
    """An endless stream of groups: K images of one identity, P identities to a batch.

    Every identity comes once in as many groups as there are identities, its images without
    replacement until they are used up. A batch holds no identity twice, unless there are fewer
    than P; a group no image twice, unless the identity has fewer than K: those then come equally
    often, each time in another view.
    """

    def __init__(self, samples: Ids, identity: Ids, images: int, batch: int, seed: int) -> None:
        """`samples` [n] and their `identity` [n]; K is `images`, P is `batch` / K.

        Raises ValueError when K does not divide the batch, or there is no sample.
        """
        if batch % images:
            raise ValueError(f"a batch of {batch} cannot be made of {images} images an identity")
        if len(samples) == 0:
            raise ValueError("an order needs at least one sample")
        by_identity = np.argsort(identity, kind="stable")
        self._samples = samples[by_identity]
        count = np.bincount(identity)
        self._count = count[count > 0]
        self._first = np.cumsum(self._count) - self._count
        self._images, self._identities = images, batch // images
        self._who, self._which = stream_key(seed, "identities"), stream_key(seed, "images")

    def epoch(self, positions: Ids) -> Ids:
        """A number for each position ([m]) that differs whenever a sample comes again."""
        group, place = np.divmod(positions, self._images)
        return group // len(self._count) * self._images + place

    def at(self, positions: Ids, skipped: Ids | int = 0) -> Ids:
        """The samples at `positions` ([m]), or the `skipped`-th replacement of each.

        Replacements are other images of the same identity first, then of the next identity.
        """
        group, place = np.divmod(positions, self._images)
        identity, visits = np.divmod(skipped, _TRIES)
        group = group + identity
        everyone = np.full(len(group), len(self._count))
        keys = np.full(len(group), self._who)
        person = rounds(everyone, self._identities, keys, group)
        draw = (group // len(self._count) + visits) * self._images + place
        image = rounds(self._count[person], self._images, bits(self._which, person), draw)
        return self._samples[self._first[person] + image]

    def stride(self, left_out: int) -> int:
        """1: replacements of different identities differ anyway, as each has its own images."""
        return 1

    def shards_ahead(self, position: int) -> Ids:
        """None: any shard may come at any time."""
        return np.empty(0, dtype=np.int64)
