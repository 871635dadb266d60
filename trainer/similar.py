"""Which old classes each new class may be confused with (discriminative distillation, Sec. 3.2)."""

import heapq
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = 256
"""New classes whose distances to all old ones are computed at a time."""
_AT_FIRST = 16
"""Nearest old classes that are remembered of each new one: others rarely take them all."""


class Pair(NamedTuple):
    """A new class and an old one near it, by their numbers."""

    distance: float
    new: int
    old: int


def similar(new: NDArray[np.float32], old: NDArray[np.float32], count: int) -> list[Pair]:
    """For each new class its `count` nearest old ones, no old one twice: in the order taken.

    `new` [n, d] and `old` [m, d] are class centres by one model; distances are Euclidean. The
    nearest pair of all is taken first, then the nearest of those that are left, whatever the order
    of classes; of equal distances the lower new class goes first, then the lower old one. Old
    classes may run out: some new ones then get fewer.
    """
    if not count or not len(old):
        return []
    near = [
        _nearest(own, min(_AT_FIRST, len(old)))
        for first in range(0, len(new), _BLOCK)
        for own in _distances(new[first : first + _BLOCK], old)
    ]
    untried = [_pairs(number, new[number], old, own) for number, own in enumerate(near)]
    queue = [next(pairs) for pairs in untried]
    heapq.heapify(queue)
    taken, has, out = set[int](), Counter[int](), list[Pair]()
    while queue:
        pair = heapq.heappop(queue)
        if pair.old not in taken:
            taken.add(pair.old)
            has[pair.new] += 1
            out.append(pair)
        if has[pair.new] < count and (following := next(untried[pair.new], None)) is not None:
            heapq.heappush(queue, following)
    return out


def _distances(new: NDArray[np.float32], old: NDArray[np.float32]) -> NDArray[np.float64]:
    """[n, m]; not by products of the centres, which lose the digits that tell near ones apart."""
    left, right = (torch.from_numpy(centres).double() for centres in (new, old))
    return torch.cdist(left, right, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def _nearest(
    distances: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Of a new class's `distances` [m]: the old classes as near as the `count`-th, and theirs."""
    near = np.flatnonzero(distances <= np.partition(distances, count - 1)[count - 1])
    near = near[np.argsort(distances[near], kind="stable")]
    return near, distances[near]


def _pairs(
    number: int,
    new: NDArray[np.float32],
    old: NDArray[np.float32],
    near: tuple[NDArray[np.int64], NDArray[np.float64]],
) -> Iterator[Pair]:
    """A new class with every old one, nearest first; those behind `near` are looked up anew."""
    rows, distances = near
    yield from map(Pair, distances.tolist(), [number] * len(rows), rows.tolist())
    if len(rows) < len(old):
        every, all_distances = _nearest(_distances(new[None], old)[0], len(old))
        behind = slice(len(rows), None)
        yield from map(
            Pair, all_distances[behind].tolist(), [number] * len(old), every[behind].tolist()
        )
