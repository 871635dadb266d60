"""Classifier rows of a contiguous range of identities, distributed over the ranks round-robin."""

import math
from typing import Any

import torch
from torch import nn

from trainer.heads.collectives import Ranks

_INIT_BLOCK = 4096


class ShardedRows(nn.Module):
    """Rows first <= r < last of a classifier, [last - first, d] over the ranks.

    Row r lives on rank r % world, so old rows, new rows and any mix stay balanced at any learning
    step; a rank may own none.
    """

    def __init__(self, first: int, last: int, weight: torch.Tensor, ranks: Ranks) -> None:
        """`weight` holds this rank's rows in ascending order, [len(own_ids), d]."""
        super().__init__()
        self.first, self.last, self.ranks = first, last, ranks
        self.weight = nn.Parameter(weight)
        if len(weight) != len(self.own_ids()):
            raise ValueError(f"{len(weight)} rows given, this rank owns {len(self.own_ids())}")

    @classmethod
    def new(cls, first: int, last: int, dimension: int, seed: int, ranks: Ranks) -> "ShardedRows":
        """Random rows, uniform in ±1/sqrt(d), the same whatever the world size."""
        ids = own_ids(first, last, ranks)
        weight = torch.empty(len(ids), dimension)
        # every rank draws whole blocks and keeps its own rows: a generator a rank would make them
        # depend on the world size
        bound = 1 / math.sqrt(dimension)
        for block in range(first // _INIT_BLOCK, -(-last // _INIT_BLOCK)):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
            drawn = torch.rand(_INIT_BLOCK, dimension, generator=generator)
            here = (ids // _INIT_BLOCK) == block
            weight[here] = (drawn[ids[here] % _INIT_BLOCK] * 2 - 1) * bound
        return cls(first, last, weight, ranks)

    def part(self, first: int, last: int) -> "ShardedRows":
        """Its rows first <= r < last, in the same memory: no copy.

        Gradients of the part reach the whole block's weight, dense and sparse ones.
        """
        before, own = own_ids(self.first, first, self.ranks), own_ids(first, last, self.ranks)
        return _RowsPart(first, last, _span(self.weight, len(before), len(own)), self.ranks)

    def seen_as(self, weight: torch.Tensor) -> "ShardedRows":
        """The same rows by `weight` [own, any length], which was computed from theirs."""
        return _RowsPart(self.first, self.last, weight, self.ranks)

    def own_ids(self) -> torch.Tensor:
        """The row ids of this rank, ascending, [own] int64."""
        return own_ids(self.first, self.last, self.ranks)

    def local(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For global `rows`: their indices into `weight`, and which of them this rank owns.

        Indices of other ranks' rows are 0.
        """
        world, rank = self.ranks.world, self.ranks.rank
        owned = (rows % world == rank) & (rows >= self.first) & (rows < self.last)
        start = self.first + (rank - self.first) % world
        return torch.where(owned, (rows - start) // world, 0), owned


class _RowsPart(ShardedRows):
    """Rows of another block. Their weight is no parameter, but made from that block's."""

    def __init__(self, first: int, last: int, weight: torch.Tensor, ranks: Ranks) -> None:
        nn.Module.__init__(self)
        self.first, self.last, self.ranks = first, last, ranks
        self.weight = weight  # type: ignore[assignment]


class _Span(torch.autograd.Function):
    """Consecutive rows of a weight; a slice's own backward takes no sparse gradient."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, start: int, count: int) -> torch.Tensor:
        ctx.start, ctx.shape = start, weight.shape
        return weight[start : start + count]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if grad.is_sparse:
            return (
                sparse_rows(grad._indices()[0] + ctx.start, grad._values(), ctx.shape),
                None,
                None,
            )
        whole = grad.new_zeros(ctx.shape)
        whole[ctx.start : ctx.start + len(grad)] = grad
        return whole, None, None


def _span(weight: torch.Tensor, start: int, count: int) -> torch.Tensor:
    return _Span.apply(weight, start, count)


def own_ids(first: int, last: int, ranks: Ranks) -> torch.Tensor:
    """The ids r in [first, last) with r % world == rank, ascending."""
    start = first + (ranks.rank - first) % ranks.world
    return torch.arange(start, last, ranks.world) if start < last else torch.empty(0).long()


def sparse_rows(index: torch.Tensor, values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Values [n, d] at rows `index` [n] as a sparse gradient of `shape` [own, d]."""
    # said explicitly, or torch warns that it does not check the indices
    with torch.sparse.check_sparse_tensor_invariants(False):
        return torch.sparse_coo_tensor(index[None], values, shape)
