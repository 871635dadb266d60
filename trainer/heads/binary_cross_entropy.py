"""Sigmoid binary cross-entropy over rows that no rank holds whole."""

from typing import Any

import torch
from torch.nn import functional as F

from trainer.heads.collectives import Ranks


class _BinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        count: int,
        ranks: Ranks,
    ) -> torch.Tensor:
        logits = inputs @ weight.T
        # -t log s - (1 - t) log(1 - s), with s the sigmoid of the logit, without its overflow
        losses = ranks.sum((F.softplus(logits) - targets * logits).sum(dim=1))
        ctx.save_for_backward(inputs, weight, logits.sigmoid_().sub_(targets))
        ctx.count, ctx.ranks = count, ranks
        return losses / count

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, None, None, None]:
        inputs, weight, difference = ctx.saved_tensors
        grad_logits = difference * (grad / ctx.count)[:, None]
        grad_inputs = ctx.ranks.sum(grad_logits @ weight)
        trained = ctx.needs_input_grad[1]
        return grad_inputs, grad_logits.T @ inputs if trained else None, None, None, None


def binary_cross_entropy(
    inputs: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, count: int, ranks: Ranks
) -> torch.Tensor:
    """Each sample's binary cross-entropy, the mean over the `count` rows of all ranks: [B].

    `inputs` [B, d] are equal on every rank, `weight` [own, d] are this rank's rows, and `targets`
    [B, own], from 0 to 1, what the sigmoids of inputs · weight are to be.
    """
    return _BinaryCrossEntropy.apply(inputs, weight, targets, count, ranks)
