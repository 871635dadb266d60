"""Drawing without replacement, round after round, so that no block holds an item twice."""

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import bits, permuted

Ids = NDArray[np.int64]
Keys = NDArray[np.uint64]


def rounds(count: Ids, block: int, key: Keys, position: Ids) -> Ids:
    """The items of range(`count`) at `position` of endless rounds, a stream for each `key` ([m]).

    Each round of `count` positions holds every item once, in a random order. Each aligned block of
    `block` positions holds no item twice, or, of fewer items than positions, each equally often
    but for one. With fewer than two blocks of items, a new order is drawn only where a round
    begins with a block.
    """
    number, within = np.divmod(position, count)
    short = count < 2 * block
    # all rounds that share a block use one order: two orders could repeat an item within it
    draw = np.where(short, number // (block // np.gcd(block, count)), number)
    items = permuted(count, bits(key, draw), within)
    taken = number * count % block  # of the block that the round begins in, by the round before
    meets = ~short & (within < block) & (taken > 0)
    if meets.any():
        given = (count[meets], key[meets], number[meets], taken[meets])
        items[meets] = _parted(*given, block, within[meets])
    return items


def _parted(count: Ids, key: Keys, number: Ids, taken: Ids, block: int, within: Ids) -> Ids:
    """Items at the first `block` positions of rounds, reordered so that items with which the round
    before ended come last, outside of the block that both rounds share.

    The round before ended with `taken` items of that block. It has at least two blocks, so its own
    first positions, which are reordered too, are none of them.
    """
    own, before = bits(key, number), bits(key, number - 1)
    _, which, row = np.unique(own, return_index=True, return_inverse=True)
    rows, columns = np.divmod(np.arange(len(which) * block), block)
    one = which[rows]
    head = permuted(count[one], own[one], columns)
    tail = permuted(count[one], before[one], count[one] - 1 - columns)
    tail = np.where(columns < taken[one], tail, -1)
    base = rows * (count.max() + 1)  # one `isin` for all rounds: items of each in a range apart
    last = np.isin(head + base, (tail + base)[tail >= 0]).reshape(-1, block)
    order = np.argsort(last, axis=1, kind="stable")
    return np.take_along_axis(head.reshape(-1, block), order, axis=1)[row, within]
