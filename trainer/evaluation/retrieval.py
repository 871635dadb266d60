"""Search: each query ranks the gallery. CMC, mAP and mINP with the camera rule of re-id.

A query's hits are ranked by counting the gallery images nearer than each of them: scores are sorted
by value, no order of the gallery is stored, and three numbers are kept of each query.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.evaluation.blocks import Vectors, all_scores, block_size, query_blocks, tiles

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Retrieval:
    """The outcome of a search test."""

    cmc: Floats
    """[depth] share of queries with a hit among the first k, k from 1."""
    mean_average_precision: float
    mean_inverse_penalty: float
    """mINP: hits divided by the rank of the last one, averaged."""
    skipped: int
    """Queries without any image of their identity to find."""
    dropped: int
    """Pairs of a query and a gallery image of the same identity and camera, left out."""


@dataclass(frozen=True)
class Hits:
    """The results of a block of queries ([q] each)."""

    first: Ids
    """Rank of the nearest hit, from 1; 0 for a query with nothing to find."""
    precision: Floats
    """Average precision."""
    penalty: Floats
    """Hits divided by the rank of the last."""
    dropped: Ids
    """Gallery images left out, of the same identity and camera."""


class Labels:
    """The gallery's identities and cameras, for look-up by identity."""

    def __init__(self, identity: Ids, camera: Ids) -> None:
        self._order = np.argsort(identity, kind="stable")
        self._sorted = identity[self._order]
        self._camera = camera

    def own(self, identity: int, camera: int) -> tuple[Ids, Ids]:
        """The gallery rows of `identity`, ascending: those of other cameras, and of `camera`."""
        bounds = np.searchsorted(self._sorted, [identity, identity + 1])
        rows = self._order[slice(*bounds)]
        same = self._camera[rows] == camera
        return rows[~same], rows[same]


def nearest(query: torch.Tensor, gallery: Vectors, k: int) -> Ids:
    """The k gallery rows nearest to each query ([q, k]), nearest first, by Euclidean distance.

    Equal distances keep the gallery's order. Memory does not grow with the gallery.
    """
    found = []
    for block in query_blocks(len(query)):
        part = query[block]
        best = torch.empty(len(part), 0, dtype=query.dtype)
        rows = torch.empty(len(part), 0, dtype=torch.int64)
        for start, scores in tiles(part, gallery, block_size()):
            here = torch.arange(start, start + scores.shape[1]).expand(len(part), -1)
            ranked = torch.cat([best, scores], 1).sort(dim=1, descending=True, stable=True)
            kept = ranked.indices[:, :k]
            best, rows = ranked.values[:, :k], torch.cat([rows, here], 1).gather(1, kept)
        found.append(rows)
    return torch.cat(found).numpy()


def _ranks(scores: NDArray[np.floating], hits: Ids) -> Ids:
    """Ranks (ascending, from 1) of the gallery rows `hits` when `scores` [g] are ranked."""
    own = scores[hits]
    ordered = np.sort(scores)
    left, right = (np.searchsorted(ordered, own, side=side) for side in ("left", "right"))
    ranks = len(scores) - right + 1
    for number in np.flatnonzero(right - left > 1):  # equal distances keep the gallery's order
        ranks[number] += np.count_nonzero(scores[: hits[number]] == own[number])
    return np.sort(ranks)


def search(
    block: slice, query: Vectors, identity: Ids, camera: Ids, gallery: Vectors, labels: Labels
) -> Hits:
    """Searches for one block (of `query_blocks`) of the queries ([q, d]): a unit of work.

    `identity` and `camera` are the queries', `labels` the gallery's.
    """
    scores = all_scores(query[block], gallery).numpy()

    def one(number: int) -> tuple[int, float, float, int]:
        row, asked = scores[number], block.start + number
        hits, dropped = labels.own(int(identity[asked]), int(camera[asked]))
        if not len(hits):
            return 0, 0.0, 0.0, len(dropped)
        row[dropped] = -np.inf  # last, which is as good as removed: ranks count better scores
        ranks = _ranks(row, hits)
        found = np.arange(1, len(hits) + 1)
        precision, penalty = float(np.mean(found / ranks)), len(hits) / int(ranks[-1])
        return int(ranks[0]), precision, penalty, len(dropped)

    return Hits(*map(np.array, zip(*map(one, range(len(scores))), strict=True)))


def merge(parts: Iterable[Hits], depth: int) -> Retrieval:
    """The outcome over all blocks, in the order of the queries."""
    every = list(parts)
    first = np.concatenate([np.empty(0, dtype=np.int64), *(part.first for part in every)])
    counted = max(1, int((first > 0).sum()))
    by_rank = np.bincount(first[(first > 0) & (first <= depth)], minlength=depth + 1)[1:]
    return Retrieval(
        by_rank.cumsum() / counted,
        float(np.concatenate([[], *(part.precision for part in every)]).sum() / counted),
        float(np.concatenate([[], *(part.penalty for part in every)]).sum() / counted),
        int((first == 0).sum()),
        sum(int(part.dropped.sum()) for part in every),
    )


def retrieve(
    query: torch.Tensor,
    gallery: Vectors,
    query_identity: Ids,
    gallery_identity: Ids,
    query_camera: Ids,
    gallery_camera: Ids,
    depth: int = 10,
) -> Retrieval:
    """Ranks the gallery ([g, d]) for each query ([q, d]) by Euclidean distance, block by block.

    Gallery images of the query's identity *and* camera are dropped; queries left without a match
    are skipped and counted. Equal distances keep the gallery's order. Raises ValueError for NaN.
    """
    labels = Labels(gallery_identity, gallery_camera)
    blocks = query_blocks(len(query), len(gallery))
    parts = [
        search(
            block=b,
            query=query,
            identity=query_identity,
            camera=query_camera,
            gallery=gallery,
            labels=labels,
        )
        for b in blocks
    ]
    return merge(parts, depth)
