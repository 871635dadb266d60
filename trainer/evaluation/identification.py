"""Identification among distractors (MegaFace's rank-k): a mate must outrank all of them.

Every ordered pair (a, b) of two images of one identity is a trial: a is searched for in a
gallery of b and all distractors. Its rank is 1 + the distractors at least as near to a as b is: a
distractor at the same distance outranks the mate. Distractors are counted tile by tile, never
sorted as a whole, so a million of them need no more memory than a few thousand.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.blocks import Vectors, all_scores, block_size, query_blocks, tiles

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Identification:
    """The outcome of a search for mates among distractors."""

    cmc: NDArray[np.float64]
    """[depth] share of trials whose mate is among the first k, k from 1."""
    trials: int
    """Ordered pairs of images of one identity."""
    skipped: int
    """Probes that are the only image of their identity: they make no trial."""


def ranks(block: slice, probe: Vectors, identity: Ids, distractors: Vectors) -> tuple[Ids, int]:
    """The ranks of the trials of one block of probes, and how many probes make none.

    `probe` is [p, d] with their `identity` [p]; `block` is one of `query_blocks(p, p)`. A unit of
    work.
    """
    query = probe[block]
    mates = [np.flatnonzero(identity == who) for who in identity[block].tolist()]
    mates = [own[own != a] for a, own in enumerate(mates, start=block.start)]
    scores = all_scores(query, probe).numpy()
    wanted = [scores[a, own] for a, own in enumerate(mates)]
    above = [np.zeros(len(own), dtype=np.int64) for own in mates]
    for _, part in tiles(query, distractors, block_size(len(probe))):
        # counted from the left of equal scores: a distractor at the mate's distance outranks it, or
        # a collapsed model would score 100 %
        ordered = np.sort(part.numpy(), axis=1)
        for a, own in enumerate(wanted):
            above[a] += ordered.shape[1] - np.searchsorted(ordered[a], own, side="left")
    alone = sum(not len(own) for own in mates)
    return np.concatenate([np.empty(0, dtype=np.int64), *above]) + 1, alone


def merge(parts: Iterable[tuple[Ids, int]], depth: int) -> Identification:
    """The outcome over all blocks. Raises ValueError when no probe has a mate."""
    every = list(parts)
    found = np.concatenate([np.empty(0, dtype=np.int64), *(part for part, _ in every)])
    if not len(found):
        raise ValueError("no probe has a second image of its identity: there is nothing to find")
    by_rank = np.bincount(np.minimum(found, depth + 1), minlength=depth + 2)[1:-1]
    return Identification(
        by_rank.cumsum() / len(found), len(found), sum(alone for _, alone in every)
    )


def identify(
    probe: Vectors, identity: Ids, distractors: Vectors, depth: int = 10
) -> Identification:
    """Searches for every probe's mates ([p, d], `identity` [p]) among `distractors` ([g, d])."""
    blocks = query_blocks(len(probe), len(probe))
    return merge((ranks(block, probe, identity, distractors) for block in blocks), depth)
