"""The K old identities nearest to an image: selection, and the trained model's activations."""

from typing import Any

import torch

from trainer.heads.collectives import Ranks
from trainer.heads.rows import ShardedRows, sparse_rows


def top_k(
    activations: torch.Tensor, ids: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids ([B, k] int64) and activations ([B, k]) of the k largest in each row, largest first.

    `activations` [B, n], `ids` [n] ascending. Ties go to the lowest id, so that the result does
    not depend on how columns are spread over ranks; k is cut to n.
    """
    k = min(k, len(ids))
    values, columns = activations.topk(k, dim=1)
    if k and k < len(ids):
        # topk takes any of equal values: rows where some of them were left out are sorted again
        edge = values[:, -1:]
        tied = (activations == edge).sum(dim=1) > (values == edge).sum(dim=1)
        # of three dimensions: of such a mask a dry run takes nothing to be true, and ties are rare
        for row in tied[None, None].nonzero()[:, 2].tolist():
            order = activations[row].sort(descending=True, stable=True)
            values[row], columns[row] = order.values[:k], order.indices[:k]
    # by id, and then stably by value: equal values are in the order of their ids
    columns, by_id = columns.sort(dim=1)
    values = values.gather(1, by_id)
    values, by_value = values.sort(dim=1, descending=True, stable=True)
    return ids.to(columns.device)[columns.gather(1, by_value)], values


def sharded_top_k(
    gathered: torch.Tensor, rows: ShardedRows, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`top_k` over rows that are spread over the ranks: ids and activations, [B, min(k, C)].

    `gathered` [B, d] is equal on every rank. Each rank contributes its k best, and every rank
    merges all of them.
    """
    ranks = rows.ranks
    count = rows.last - rows.first
    ids, values = top_k(gathered @ rows.weight.T, rows.own_ids(), k)
    if ranks.world == 1:
        return ids, values
    width = max(min(k, len(_own(rows, rank))) for rank in range(ranks.world))
    offered = values.new_full((len(gathered), width), -torch.inf)
    offered_ids = ids.new_full((len(gathered), width), torch.iinfo(torch.int64).max)
    offered[:, : values.shape[1]], offered_ids[:, : ids.shape[1]] = values, ids
    counts = [len(gathered)] * ranks.world
    all_values = torch.cat(ranks.gather(offered, counts).chunk(ranks.world), dim=1)
    all_ids = torch.cat(ranks.gather(offered_ids, counts).chunk(ranks.world), dim=1)
    all_ids, by_id = all_ids.sort(dim=1)
    all_values, order = all_values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    kept = min(k, count)
    return all_ids.gather(1, order)[:, :kept], all_values[:, :kept]


def _own(rows: ShardedRows, rank: int) -> range:
    world = rows.ranks.world
    return range(rows.first + (rank - rows.first) % world, rows.last, world)


class _Activations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        index: torch.Tensor,
        owned: torch.Tensor,
        ranks: Ranks,
        normalised: bool,
    ) -> torch.Tensor:
        sample, place = owned.nonzero(as_tuple=True)
        # each row once: its norm is computed once, and the sparse gradient has no repeated index
        touched, pair = index[sample, place].unique(return_inverse=True)
        rows = weight[touched]
        inverse = rows.new_ones(len(rows))
        if normalised:
            inverse = torch.linalg.vector_norm(rows, dim=1).clamp_min(1e-12).reciprocal()
        directions = rows * inverse[:, None]
        out = inputs.new_zeros(index.shape)
        out[sample, place] = (inputs[sample] * directions[pair]).sum(dim=1)
        ctx.save_for_backward(inputs, directions, inverse, touched, sample, place, pair)
        ctx.ranks, ctx.normalised, ctx.shape = ranks, normalised, weight.shape
        return ranks.sum(out)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, directions, inverse, touched, sample, place, pair = ctx.saved_tensors
        pull = grad[sample, place][:, None]
        grad_inputs = torch.zeros_like(inputs)
        grad_inputs.index_add_(0, sample, pull * directions[pair])
        grad_rows = torch.zeros_like(directions)
        grad_rows.index_add_(0, pair, pull * inputs[sample])
        if ctx.normalised:
            # a change along the row does not turn it
            along = (grad_rows * directions).sum(dim=1, keepdim=True)
            grad_rows = (grad_rows - along * directions) * inverse[:, None]
        sparse = sparse_rows(touched, grad_rows, ctx.shape)
        return ctx.ranks.sum(grad_inputs), sparse, None, None, None, None


def activations(
    inputs: torch.Tensor, rows: ShardedRows, classes: torch.Tensor, normalised: bool = False
) -> torch.Tensor:
    """The activations of each sample on its own K rows: [B, K].

    `inputs` [B, d] and `classes` [B, K] (row ids within `rows`) are equal on every rank. Each rank
    computes the pairs whose row it owns, so only [B, K] numbers travel; the gradient of the rows
    is sparse and touches the rows of `classes` only. `normalised` divides rows by their norm.
    """
    index, owned = rows.local(classes)
    return _Activations.apply(inputs, rows.weight, index, owned, rows.ranks, normalised)
