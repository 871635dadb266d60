"""Batch normalisation over the global batch, on CPU and GPU, with uneven or empty ranks.

torch's SyncBatchNorm is for GPUs only and wants equal batches.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trainer.heads.collectives import Ranks


class _GlobalBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        module: "GlobalBatchNorm",
    ) -> torch.Tensor:
        axes = [i for i in range(x.dim()) if i != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.new_full((1,), x.numel() // max(1, x.shape[1]))
        packed = module.ranks.sum(torch.cat([x.sum(axes), count]))
        mean, total = packed[:-1] / packed[-1], packed[-1]
        centred = x - mean.view(shape)
        variance = module.ranks.sum(centred.square().sum(axes)) / total
        inverse = (variance + module.eps).rsqrt()
        module.update(mean, variance * (total / (total - 1).clamp_min(1)))
        normalised = centred.mul_(inverse.view(shape))
        ctx.save_for_backward(normalised, weight, inverse, total)
        ctx.axes, ctx.shape, ctx.ranks = axes, shape, module.ranks
        return normalised * weight.view(shape) + bias.view(shape)

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        normalised, weight, inverse, total = ctx.saved_tensors
        own_bias = grad.sum(ctx.axes)
        own_weight = (grad * normalised).sum(ctx.axes)
        means = ctx.ranks.sum(torch.stack([own_bias, own_weight])) / total
        centred = grad - means[0].view(ctx.shape) - normalised * means[1].view(ctx.shape)
        return centred * (weight * inverse).view(ctx.shape), own_weight, own_bias, None


class GlobalBatchNorm(nn.Module):
    """Batch normalisation whose statistics, running ones included, are the global batch's."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, original: nn.BatchNorm1d | nn.BatchNorm2d, ranks: Ranks) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias
        self.register_buffer("running_mean", original.running_mean)
        self.register_buffer("running_var", original.running_var)
        self.register_buffer("num_batches_tracked", original.num_batches_tracked)
        self.eps, self.ranks = original.eps, ranks
        self.momentum = 0.1 if original.momentum is None else original.momentum

    def update(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Moves the running statistics towards this global batch's."""
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked.add_(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [b, C, ...] → the same shape."""
        if self.training:
            return _GlobalBatchNorm.apply(x, self.weight, self.bias, self)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def synchronise_batch_norm(module: nn.Module, ranks: Ranks) -> None:
    """Replaces every batch normalisation within `module`, in place; nothing in a world of one."""
    if ranks.world == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, GlobalBatchNorm(child, ranks))
        else:
            synchronise_batch_norm(child, ranks)
