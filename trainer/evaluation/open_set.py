"""Open-set identification: searches for identities that may not be in the gallery (IJB 1:N).

With threshold t, over one gallery:

- FPIR(t): share of the probes *without* a mate in the gallery whose best score is at least t.
- TPIR(t): share of the probes *with* a mate whose mate has the single best score of the whole
  gallery (rank 1), and a score of at least t. A tie with somebody else is a miss.

TPIR at an FPIR f is the highest that some threshold reaches with an FPIR of at most f, as for
TAR at a FAR (`roc`). IJB defines two disjoint galleries; figures are the means over them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.evaluation.blocks import Vectors, block_size, query_blocks, tiles
from trainer.evaluation.roc import Roc, impostors_between, roc_from_counts

FALSE_POSITIVE_RATES = (1e-3, 1e-2, 1e-1)
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Best:
    """The best scores of a block of probes ([p]): of their mate, and of any other identity."""

    mate: NDArray[np.floating]
    """Minus infinity for a probe without a mate."""
    other: NDArray[np.floating]


def best_scores(
    block: slice, probe: Vectors, subject: Ids, gallery: Vectors, gallery_subject: Ids
) -> Best:
    """The best scores of one block (of `query_blocks`) of the probes ([p, d]): a unit of work."""
    query, wanted = probe[block], subject[block]
    mate = torch.full((len(query),), -torch.inf, dtype=query.dtype)
    other = mate.clone()
    for start, scores in tiles(query, gallery, block_size()):
        there = gallery_subject[start : start + scores.shape[1]]
        same = torch.from_numpy(wanted[:, None] == there)
        mate = torch.maximum(mate, scores.masked_fill(~same, -torch.inf).amax(dim=1))
        other = torch.maximum(other, scores.masked_fill(same, -torch.inf).amax(dim=1))
    return Best(mate.numpy(), other.numpy())


def merge(parts: Iterable[Best], subject: Ids, gallery_subject: Ids) -> Roc:
    """TPIR (accepted genuine) against FPIR (accepted impostors) over all blocks of one gallery.

    Raises ValueError unless there are probes both with and without a mate.
    """
    every = list(parts)
    mate = np.concatenate([part.mate for part in every])
    other = np.concatenate([part.other for part in every])
    mated = np.isin(subject, gallery_subject)
    found = mated & (mate > other)
    genuine = np.sort(mate[found])
    misses = int(mated.sum() - found.sum())
    return roc_from_counts(genuine, impostors_between(other[~mated], genuine), misses)


def open_set(probe: Vectors, subject: Ids, gallery: Vectors, gallery_subject: Ids) -> Roc:
    """TPIR against FPIR of `probe` [p, d] searched for in `gallery` [g, d], in blocks."""
    blocks = query_blocks(len(probe))
    parts = (best_scores(b, probe, subject, gallery, gallery_subject) for b in blocks)
    return merge(parts, subject, gallery_subject)
