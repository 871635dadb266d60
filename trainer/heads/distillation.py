"""Distillation over all old rows, which are distributed over the ranks."""

from typing import Any

import torch

from trainer.heads.collectives import Ranks


def _log_partition(logits: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """log-sum-exp over the sharded columns of `logits` [B, own]: [B]."""
    lowest = torch.finfo(logits.dtype).min
    if logits.shape[1]:
        top = logits.max(dim=1).values
    else:  # a rank may own no row
        top = logits.new_full((len(logits),), lowest)
    top = ranks.max(top)
    total = ranks.sum((logits - top[:, None]).exp().sum(dim=1))
    return top + total.log()


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: torch.Tensor,
        weight: torch.Tensor,
        teacher: torch.Tensor,
        temperature: float,
        ranks: Ranks,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        student = embeddings @ weight.T / temperature
        teacher = teacher / temperature
        log_q = student - _log_partition(student, ranks)[:, None]
        log_p = teacher - _log_partition(teacher, ranks)[:, None]
        p = log_p.exp()
        # one collective for both sums
        sums = ranks.sum(torch.stack([(p * log_q).sum(dim=1), (p * log_p).sum(dim=1)]))
        # the gradient by the logits is q - p: one [B, own] matrix is kept, in log_q's memory
        ctx.save_for_backward(embeddings, weight, log_q.exp_().sub_(p))
        ctx.temperature, ctx.ranks = temperature, ranks
        divergence_from_entropy, entropy = -sums[0], -sums[1]
        ctx.mark_non_differentiable(entropy)
        return divergence_from_entropy, entropy

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None, None, None]:
        embeddings, weight, difference = ctx.saved_tensors
        grad_logits = difference * (grad / ctx.temperature)[:, None]
        grad_embeddings = ctx.ranks.sum(grad_logits @ weight)
        trained = ctx.needs_input_grad[1]
        return grad_embeddings, grad_logits.T @ embeddings if trained else None, None, None, None


def distillation(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    ranks: Ranks,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy -sum p log q over all rows, and the entropy of p: two [B] tensors.

    `inputs` [B, d] are equal on every rank, `weight` [own, d] are this rank's trained rows and
    `teacher` [B, own] the frozen model's activations on them. p and q are softmaxes at
    `temperature` of the teacher's activations and of inputs · weight: Eq. 2 of the CRL paper, and
    Eq. 3 with S_i all old rows.
    """
    return _Distillation.apply(inputs, weight, teacher, temperature, ranks)
