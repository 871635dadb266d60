"""Scores of queries against a gallery, computed in blocks so that memory stays bounded.

Every block of scores comes from a matrix product of one fixed shape, padded with zeros: the score
of a pair then depends neither on the numbers of queries and gallery vectors nor on who computes it,
and equal vectors get equal scores wherever they lie in the gallery.
"""

from collections.abc import Iterator
from typing import Protocol

import torch

from trainer.divergence import Diverged

TILE = 1024
"""Gallery vectors scored at once."""
_SCORES = 64 * 2**20  # held at once: 256 MiB of fp32
_MOST_QUERIES = 512


class Vectors(Protocol):
    """Vectors that are read in slices: a tensor [n, d], or a file (`StoredVectors`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> torch.Tensor: ...


def block_size(held: int = TILE) -> int:
    """Queries of a block, when `held` scores of each are held at once: a multiple of 16, at most
    512, such that they fit in 256 MiB."""
    return max(16, min(_MOST_QUERIES, _SCORES // max(1, held) // 16 * 16))


def query_blocks(queries: int, held: int = TILE) -> list[slice]:
    """Cuts `queries` into blocks of `block_size`: the units of distributed work.

    The cut depends on the two counts alone.
    """
    size = block_size(held)
    return [slice(start, min(start + size, queries)) for start in range(0, queries, size)]


def squared_norms(vectors: torch.Tensor, what: str) -> torch.Tensor:
    """[n] squared lengths of `vectors` [n, d].

    Raises Diverged where one is NaN or infinite: comparisons with it would rank at random.
    """
    norms = vectors.square().sum(dim=1)
    bad = ~norms.isfinite()
    if bad.any():
        raise Diverged(
            f"{int(bad.sum())} of {len(norms)} {what} embeddings are NaN or infinite (the first in "
            f"row {int(bad.nonzero()[0])} of its block): the model diverged, train it again with a "
            "lower learning rate"
        )
    return norms


def _padded(vectors: torch.Tensor, rows: int) -> torch.Tensor:
    missing = rows - len(vectors)
    return torch.nn.functional.pad(vectors, (0, 0, 0, missing)) if missing else vectors


def tiles(query: torch.Tensor, gallery: Vectors, rows: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(first gallery row, scores [q, t <= TILE]) over the gallery, for q <= `rows` queries.

    A score is minus the squared Euclidean distance, up to a constant of each query; larger is
    nearer. For vectors of length 1 it is 2 cos - 1.
    """
    squared_norms(query, "query")
    # products of one shape: in another a pair's score could be rounded differently, and equal
    # vectors would no longer tie
    doubled = _padded(2 * query, rows)
    for start in range(0, len(gallery), TILE):
        part = gallery[start : start + TILE]
        lengths = squared_norms(part, "gallery")
        scores = (doubled @ _padded(part, TILE).T)[: len(query), : len(part)]
        yield start, scores.sub_(lengths)


def all_scores(query: torch.Tensor, gallery: Vectors) -> torch.Tensor:
    """Scores [q, g] of a block of `query_blocks(queries, g)` against the whole gallery."""
    found = torch.empty(len(query), len(gallery), dtype=query.dtype)
    for start, scores in tiles(query, gallery, block_size(len(gallery))):
        found[:, start : start + scores.shape[1]] = scores
    return found
