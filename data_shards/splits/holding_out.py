"""Images that are held out from training, equally many of each identity."""

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import bits, stream_key
from data_shards.settings import InputError

Ids = NDArray[np.int64]
Names = NDArray[np.object_]
_REMEDY = "change its memory or hold_out"


def held_each(share: float, per_identity: int) -> int:
    """How many images of each identity are held out, where each of the old ones has
    `per_identity` exemplars: a `share` of these, rounded down."""
    return int(np.floor(round(share * per_identity, 6)))


def check_held(counts: Ids, count: int, names: Names, where: str) -> None:
    """Raises InputError where holding `count` images out leaves nothing to hold out or to train on.

    `counts` [n] are the images of each of the identities `names` [n]; `where` says whose they are.
    """
    if not count:
        raise InputError(f"{where} would hold no image of an identity out: {_REMEDY}")
    if len(counts) and counts.min() <= count:
        few = int(counts.argmin())
        raise InputError(
            f"{where} would hold {count:,} images of each identity out, and {names[few]!r} has "
            f"{counts[few]:,}, so that none is left to train on: {_REMEDY}"
        )


def held_out(
    samples: Ids,
    rows: Ids,
    keys: NDArray[np.uint64],
    count: int,
    seed: int,
    names: Names,
    where: str,
) -> Ids:
    """`count` of the `samples` [n] of every identity, ascending.

    `rows` [n] are their identities' classifier rows, of which `names` [C] are the names, `keys` [n]
    the samples' own hashes: which ones are held out depends on these and `seed`, not on their
    order. Raises InputError as `check_held` does.
    """
    drawn = bits(stream_key(seed, "held out"), keys)
    order = np.lexsort((drawn, rows))
    ids, firsts, counts = np.unique(rows[order], return_index=True, return_counts=True)
    check_held(counts, count, names[ids], where)
    chosen = (firsts[:, None] + np.arange(count)).ravel()
    return np.sort(samples[order[chosen]])
