"""Batch normalisation over the global batch, on CPU and GPU, with uneven or empty ranks.

torch's SyncBatchNorm is for GPUs only and needs batches of equal size.
"""

from collections.abc import Iterable
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
        shape = [1, -1] + [1] * (x.dim() - 2)
        own_mean, own_variance = _moments(x, module.eps)
        count = own_mean.new_full((1,), x.numel() // max(1, x.shape[1]))
        # sums, because ranks may have different numbers of images; all of them in one collective
        sums = [own_mean * count, (own_variance + own_mean.square()) * count, count]
        packed = module.ranks.sum(torch.cat(sums))
        total = packed[-1:]
        mean, square = (packed[:-1] / total).chunk(2)
        # a difference of large numbers: hence float64, and never below 0
        variance = (square - mean.square()).clamp_min(0)
        module.update(mean, variance * (total / (total - 1).clamp_min(1)))
        inverse = (variance + module.eps).rsqrt()
        scale = weight.double() * inverse
        ctx.save_for_backward(x, weight, mean, inverse, total)
        ctx.shape, ctx.ranks = shape, module.ranks
        scale, shift = (v.to(x.dtype).view(shape) for v in (scale, bias.double() - mean * scale))
        return torch.addcmul(shift, x, scale)

    @staticmethod
    def backward(
        ctx: Any, grad: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        x, weight, mean, inverse, total = ctx.saved_tensors
        own_bias, own_weight = _gradient_sums(grad, x, mean.to(x.dtype), inverse.to(x.dtype))
        means = ctx.ranks.sum(torch.stack([own_bias, own_weight])) / total
        # d/dx = weight · inverse · (grad - mean of grad - normalised x · mean of grad · that)
        of_grad = weight.double() * inverse
        of_x = -of_grad * inverse * means[1]
        constant = -of_grad * means[0] - of_x * mean
        of_grad, of_x, constant = (v.to(x.dtype).view(ctx.shape) for v in (of_grad, of_x, constant))
        grad_x = torch.addcmul(constant, grad, of_grad).addcmul_(x, of_x)
        return grad_x, own_weight.to(weight.dtype), own_bias.to(weight.dtype), None


def _moments(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's mean and biased variance of each channel, [C] float64 each; 0 without images.

    By PyTorch's own kernel, which reads the input once: written as sums in plain PyTorch,
    synchronised batch normalisation took three times as long as the native one.
    """
    if not x.numel():
        nothing = x.new_zeros(x.shape[1], dtype=torch.float64)
        return nothing, nothing
    _, mean, inverse = torch.native_batch_norm(x, None, None, None, None, True, 0.0, eps)
    return mean.double(), inverse.double().pow(-2) - eps


def _gradient_sums(
    grad: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's sums of `grad` and of `grad` times normalised x, [C] float64 each.

    By PyTorch's own kernel, as in `_moments`.
    """
    if not x.numel():
        return mean.double() * 0, mean.double() * 0
    _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
        grad, x, None, None, None, mean, inverse, True, 0.0, [False, True, True]
    )
    return of_bias.double(), of_weight.double()


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
        """Updates the running statistics with a global batch's mean and unbiased variance [C]."""
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


def hold_batch_norm(module: nn.Module) -> None:
    """Has every batch normalisation within `module` go by its running statistics, which stay."""
    for own in module.modules():
        if isinstance(own, nn.BatchNorm1d | nn.BatchNorm2d | GlobalBatchNorm):
            own.eval()


@torch.no_grad()
def measure_batch_norm(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Makes the running statistics those of what enters each layer for `batches`, of one size.

    Scales and shifts change with them, so that the network in evaluation mode gives what it gave.
    It is for networks whose statistics are lost, folded into convolutions: in training, which goes
    by the batch's, they would be another network from the first iteration on.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    moments: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, given: tuple[torch.Tensor]) -> None:
        values = given[0].transpose(0, 1).flatten(1)  # [C, n]
        variance, mean = torch.var_mean(values, dim=1, correction=0)
        moments[layer].append(torch.stack([mean, variance + mean.square()]).double())

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        for images in batches:
            network.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        old_mean, old_variance = layer.running_mean, layer.running_var
        assert old_mean is not None and old_variance is not None
        mean, square = torch.stack(moments[layer]).mean(dim=0)
        variance = (square - mean.square()).clamp_min(0)
        scale = layer.weight.double() / (old_variance.double() + layer.eps).sqrt()
        layer.bias.add_(scale * (mean - old_mean.double()))
        layer.weight.copy_(scale * (variance + layer.eps).sqrt())
        old_mean.copy_(mean)
        old_variance.copy_(variance)
