"""Softmax cross-entropy over rows that no rank holds whole, in one logits-sized buffer or less.

The rows are walked in blocks that fit the cache. Going forward, a block's logits become
exponentials; going back, these become the gradient of the logits, the gradient of the block's rows
and, where the optimiser is at hand, the updated rows, all while the block is in the cache. The
target's logit is left out of its block and treated on its own, so a margin changes [B] numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from trainer.heads.collectives import Ranks
from trainer.heads.precision import gradient_product, logits_product
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.row_state import Index, rows_at
from trainer.heads.rows import sparse_rows
from trainer.heads.softmax_kernels import exponentials, logits_gradient

_CPU_BLOCK, _GPU_BLOCK = 512, 65536
_TINY = 1e-12

Target = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A target's logit as it would be, [B] → with its margin, and the slope between them: [B], [B]."""


class Update(NamedTuple):
    """Rows are updated in the backward pass, so that their gradient is never held."""

    optimizer: RowOptimizer
    rate: float


@dataclass
class RankRows:
    """This rank's part of a classification: its rows, and where each sample's target is."""

    weight: torch.Tensor
    """[own, d] this rank's rows."""
    chosen: torch.Tensor | None
    """[n] int64: the rows that take part; none: all of them."""
    valid: torch.Tensor | None
    """[n] bool: which of `chosen` really do; none: all of them."""
    place: torch.Tensor
    """[B] int64: the target's place among the rows that take part, -1 on another rank."""
    ranks: Ranks
    normalised: bool
    """Rows are divided by their norm."""
    half: bool
    """Products of bf16 factors."""
    target: Target
    budget: int | None
    """Bytes for logits and their likes; none: the exponentials are kept, in one buffer."""
    update: Update | None
    frozen: bool = False
    """Rows have no gradient: they are not trained."""
    kept: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Of each block, its exponentials [B, n] and the logit [B] they are relative to."""
    inverse: list[torch.Tensor | None] = field(default_factory=list)
    """Of each block, one over the rows' norms [n]."""

    def count(self) -> int:
        """How many rows take part."""
        return len(self.weight) if self.chosen is None else len(self.chosen)

    def gradient(self) -> torch.Tensor | None:
        """Room for the gradient of the participating rows, unless they are updated right away."""
        if self.update or self.frozen:
            return None
        return self.weight.new_empty(self.count(), self.weight.shape[1])

    def blocks(self) -> list[tuple[int, Index]]:
        """The blocks of participating rows: the first one's place, and their index in `weight`."""
        batch, dimension = len(self.place), self.weight.shape[1]
        size = _GPU_BLOCK if self.weight.is_cuda else _CPU_BLOCK
        if self.budget is not None:
            size = max(1, min(size, self.budget // (4 * (2 * batch + 3 * dimension))))
        count = self.count()
        parts = [slice(i, min(i + size, count)) for i in range(0, count, size)]
        return [(p.start, p if self.chosen is None else self.chosen[p]) for p in parts]

    def part(self, start: int, width: int) -> torch.Tensor | None:
        """Which of a block's rows are valid."""
        return None if self.valid is None else self.valid[start : start + width]

    def exponentials(
        self, inputs: torch.Tensor, start: int, rows: torch.Tensor, inverse: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`softmax_kernels.exponentials` of a block's logits, without targets."""
        logits = logits_product(inputs, rows.T, self.half)
        return exponentials(logits, inverse, self.place - start, self.part(start, len(rows)))

    def target_rows(self) -> torch.Tensor:
        """Each sample's target row as the logits see it, [B, d]; any row for those elsewhere."""
        place = self.place.clamp_min(0)
        rows = rows_at(self.weight, place if self.chosen is None else self.chosen[place])
        return rows * _inverse_norms(rows)[:, None] if self.normalised else rows


def _inverse_norms(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(rows, dim=1).clamp_min_(_TINY).reciprocal_()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, shard: RankRows
    ) -> torch.Tensor:
        sums = [inputs.new_full((len(inputs),), -torch.inf)]
        for start, index in shard.blocks():
            rows = rows_at(shard.weight, index)
            inverse = _inverse_norms(rows) if shard.normalised else None
            exponents, top, total = shard.exponentials(inputs, start, rows, inverse)
            sums.append(top + total.log())
            shard.inverse.append(inverse)
            if shard.budget is None:
                shard.kept.append((exponents, top))
        owned = shard.place >= 0
        logit = slope = inputs.new_zeros(len(inputs))
        if len(shard.weight):
            logit, slope = shard.target((inputs * shard.target_rows()).sum(dim=1))
        sums.append(torch.where(owned, logit, -torch.inf))
        mine = torch.stack([torch.stack(sums).logsumexp(dim=0), torch.where(owned, logit, 0)])
        every = shard.ranks.gather(mine[None], [1] * shard.ranks.world)
        log_partition, target = every[:, 0].logsumexp(dim=0), every[:, 1].sum(dim=0)
        ctx.save_for_backward(inputs, log_partition, target, torch.where(owned, slope, 0))
        ctx.shard = shard
        return log_partition - target

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        inputs, log_partition, target, slope = ctx.saved_tensors
        shard: RankRows = ctx.shard
        # d loss / d logit: the share of the partition; for the target, less 1, times the slope
        push = grad * (target - log_partition).expm1_() * slope
        grad_inputs, gradient = torch.zeros_like(inputs), shard.gradient()
        for number, (start, index) in enumerate(shard.blocks()):
            rows, inverse = rows_at(shard.weight, index), shard.inverse[number]
            if shard.kept:
                exponents, top = shard.kept[number]
                shard.kept[number] = (top, top)  # lets the exponentials go
            else:
                exponents, top, _ = shard.exponentials(inputs, start, rows, inverse)
            factor = grad * (top - log_partition).exp_()
            logits_grad = logits_gradient(
                exponents=exponents,
                factor=factor,
                push=push,
                inverse=inverse,
                column=shard.place - start,
            )
            grad_inputs += gradient_product(logits_grad, rows, shard.half)
            if shard.frozen:
                continue
            rows_grad = gradient_product(logits_grad.T, inputs, shard.half)
            if inverse is not None:  # a row's length does not matter: its gradient is tangential
                along = (rows_grad * rows).sum(dim=1) * inverse.square()
                rows_grad.addcmul_(rows, along[:, None], value=-1)
            if shard.update is not None:
                valid, (optimizer, rate) = shard.part(start, len(rows)), shard.update
                copy = None if shard.chosen is None else rows
                optimizer.update(index, rows_grad, rate, valid, rows=copy)
            elif gradient is not None:
                gradient[start : start + len(rows)] = rows_grad
        if gradient is not None and shard.chosen is not None:
            gradient = sparse_rows(shard.chosen, gradient, shard.weight.shape)
        return shard.ranks.sum(grad_inputs), gradient, None


def cross_entropy(inputs: torch.Tensor, weight: torch.Tensor, shard: RankRows) -> torch.Tensor:
    """Softmax cross-entropy of each sample over the rows of all ranks (CRL paper, Eq. 1): [B].

    `inputs` [B, d] are equal on every rank: embeddings, or unit embeddings times the
    scale. `weight` is the parameter behind `shard`, or a part of it. With `shard.update`, backward
    leaves no gradient: the rows are already updated.
    """
    return _CrossEntropy.apply(inputs, weight, shard)
