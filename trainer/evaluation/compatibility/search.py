"""Searches with two models: queries embedded by one, the gallery by another.

A query's score with an identity is the best over that identity's gallery images, except those by
the query's own camera. Everything else (rank-1, open-set search, partial backfill) follows from
these [queries, identities], a block of queries at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.counter_rng import shuffled, stream_key
from trainer.evaluation.blocks import all_scores, query_blocks, squared_norms

Ids = NDArray[np.int64]
Scores = NDArray[np.floating]
_NOBODY = -np.inf


@dataclass(frozen=True)
class Search:
    """Queries ([q]) and a gallery ([g]): numbers of images or templates, identities and cameras.

    The gallery is ordered by `gallery_part`, then by identity.
    """

    query: Ids
    query_identity: Ids
    query_camera: Ids
    gallery: Ids
    gallery_identity: Ids
    gallery_camera: Ids
    gallery_part: Ids
    """The part (from 0) of each gallery image: a gallery of its own for open-set search."""
    halved: bool
    """Whether the parts are halves of one gallery, which is searched as a whole for rank-1."""

    @classmethod
    def of(
        cls,
        query: tuple[Ids, Ids, Ids],
        gallery: tuple[Ids, Ids, Ids],
        part: Ids | None = None,
    ) -> "Search":
        """A search, of (number, identity, camera) of the queries and of the gallery.

        Without `part` the gallery's identities are split into two random halves, always the same:
        every query is then mated in one half only, as in IJB-C's two galleries.
        """
        halved = part is None
        if part is None:
            people = shuffled(stream_key(0, "gallery halves"), np.unique(gallery[1]))
            part = np.isin(gallery[1], people[len(people) // 2 :]).astype(np.int64)
        order = np.lexsort((gallery[0], gallery[1], part))
        number, identity, camera = (column[order] for column in gallery)
        return cls(*query, number, identity, camera, part[order], halved)

    @cached_property
    def starts(self) -> Ids:
        """[G] the first gallery row of each group: of one identity in one part."""
        identity, part = self.gallery_identity, self.gallery_part
        return np.flatnonzero(np.diff(identity, prepend=-1) | np.diff(part, prepend=-1))

    @property
    def group_identity(self) -> Ids:
        """[G] the identity of each group."""
        return self.gallery_identity[self.starts]

    @cached_property
    def group_part(self) -> Ids:
        """[G] the part that each group is in, ascending."""
        return self.gallery_part[self.starts]

    @property
    def parts(self) -> int:
        """P, the number of parts."""
        return int(self.group_part[-1]) + 1

    @cached_property
    def own(self) -> Ids:
        """[q, P] the group of each query's own identity in each part, or -1."""
        found = np.full((len(self.query), self.parts), -1)
        for part in range(self.parts):
            first, last = np.searchsorted(self.group_part, [part, part + 1])
            there = self.group_identity[first:last]
            place = np.minimum(np.searchsorted(there, self.query_identity), len(there) - 1)
            same = there[place] == self.query_identity
            found[same, part] = first + place[same]
        return found

    @cached_property
    def dropped(self) -> tuple[Ids, Ids]:
        """(query, gallery row) of every pair of one identity and camera, ascending by query."""
        sizes = np.diff(self.starts, append=len(self.gallery))
        queries, rows = [], []
        for part in range(self.parts):
            asked = np.flatnonzero(self.own[:, part] >= 0)
            group = self.own[asked, part]
            count = sizes[group]
            within = np.arange(count.sum()) - np.repeat(count.cumsum() - count, count)
            queries.append(np.repeat(asked, count))
            rows.append(np.repeat(self.starts[group], count) + within)
        query, row = np.concatenate(queries), np.concatenate(rows)
        same = self.query_camera[query] == self.gallery_camera[row]
        order = np.argsort(query[same], kind="stable")
        return query[same][order], row[same][order]

    @cached_property
    def mated(self) -> NDArray[np.bool_]:
        """[q, P] whether a query has an image to find in a part."""
        sizes = np.diff(self.starts, append=len(self.gallery))
        query, row = self.dropped
        lost = np.zeros_like(self.own)
        np.add.at(lost, (query, self.gallery_part[row]), 1)
        return (self.own >= 0) & (sizes[self.own] > lost)

    @property
    def unmated(self) -> NDArray[np.bool_]:
        """[q, P] whether a query's identity is not in a part at all."""
        return self.own < 0


def group_scores(
    search: Search, query: torch.Tensor, gallery: torch.Tensor
) -> Iterator[tuple[slice, Scores]]:
    """Blocks of queries, and the scores [b, G] of each with every group of the gallery.

    `query` [q, d] and `gallery` [g, d] are the vectors; a score is minus the squared distance.
    Raises InputError for NaN.
    """
    asked, row = search.dropped
    for block in query_blocks(len(query), len(gallery)):
        scores = all_scores(query[block], gallery).numpy()
        first, last = np.searchsorted(asked, [block.start, block.stop])
        scores[asked[first:last] - block.start, row[first:last]] = _NOBODY
        best = np.maximum.reduceat(scores, search.starts, axis=1)
        yield block, best - squared_norms(query[block], "query").numpy()[:, None]


@dataclass(frozen=True)
class Best:
    """Each query's best scores in each part ([q, P]), minus infinity where there is nobody."""

    mate: Scores
    other: Scores

    def right(self, search: Search) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each trial found its mate at rank 1, and which are trials at all.

        [q, 1] over the whole of a halved gallery, else [q, P]. A tie with another is a miss.
        """
        if not search.halved:
            return self.mate > self.other, search.mated
        found = self.mate.max(axis=1, keepdims=True) > self.other.max(axis=1, keepdims=True)
        return found, search.mated.max(axis=1, keepdims=True)


def split_own(search: Search, block: slice, scores: Scores) -> tuple[Scores, Scores]:
    """The mates' scores [b, P], and `scores` [b, G] without them."""
    own = search.own[block]
    rows, parts = np.nonzero(own >= 0)
    mate = np.full(own.shape, _NOBODY, dtype=scores.dtype)
    mate[rows, parts] = scores[rows, own[rows, parts]]
    others = scores.copy()
    others[rows, own[rows, parts]] = _NOBODY
    return mate, others


def best_scores(search: Search, query: torch.Tensor, gallery: torch.Tensor) -> Best:
    """The best scores of queries `query` [q, d] in `gallery` [g, d]."""
    first = np.searchsorted(search.group_part, np.arange(search.parts))
    mates, others = [], []
    for block, scores in group_scores(search, query, gallery):
        mate, other = split_own(search, block, scores)
        mates.append(mate)
        others.append(np.maximum.reduceat(other, first, axis=1))
    return Best(np.concatenate(mates), np.concatenate(others))
