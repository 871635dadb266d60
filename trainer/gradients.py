"""Gradients of the embedder on their way to its optimiser: scaled for float16, and checked.

The head works in fp32 outside the engine, so a loss scale is applied only at the border: the
embeddings' gradient is multiplied on its way into the embedder and each parameter's is divided in
a hook, before DeepSpeed sees it, whatever the ZeRO stage. Rows' gradients are never scaled. A loss
on the parameters themselves must pass the same border, or the hook would divide it for nothing.
"""

from collections.abc import Iterable
from typing import Any

import torch

from trainer.heads.rows import ShardedRows

_FIRST_SCALE, _SMALLEST_SCALE, _GROWTH_INTERVAL = 2.0**16, 1.0, 2000


class LossScale:
    """A power of two that keeps float16 gradients from vanishing.

    Halved at an overflow, doubled after `interval` updates without one (Micikevicius et al.,
    "Mixed Precision Training", 2018). It is the same on every rank.
    """

    def __init__(self, interval: int = _GROWTH_INTERVAL) -> None:
        self._interval = interval
        self.tensor = torch.tensor([_FIRST_SCALE, 0.0], dtype=torch.float64)  # scale, good updates

    @property
    def value(self) -> float:
        """What gradients are multiplied by."""
        return float(self.tensor[0])

    def good(self) -> None:
        """An update was made."""
        self.tensor[1] += 1
        if self.tensor[1] >= self._interval:
            self.tensor.copy_(torch.tensor([2 * self.value, 0.0]))

    def overflow(self) -> bool:
        """Halves the scale after a gradient that is not finite; False when it cannot be halved."""
        if self.value <= _SMALLEST_SCALE:
            return False
        self.tensor.copy_(torch.tensor([self.value / 2, 0.0]))
        return True


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.scale, None


class Gradients:
    """Hooks on the embedder's parameters that unscale each gradient and remember its magnitude."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], scale: LossScale | None = None
    ) -> None:
        """`scale`: for float16 only."""
        self.scale = scale
        self._largest: list[torch.Tensor] = []
        for parameter in parameters:
            parameter.register_hook(self._arrived)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything it remembers between iterations: copy into them to put it back."""
        return {} if self.scale is None else {"loss_scale": self.scale.tensor}

    def enter(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same embeddings [b, d], or the same parameter: for losses to look at.

        Its gradient is scaled on its way into the embedder.
        """
        return tensor if self.scale is None else _Scaled.apply(tensor, self.scale.value)

    def _arrived(self, gradient: torch.Tensor) -> torch.Tensor | None:
        self._largest.append(torch.linalg.vector_norm(gradient.detach(), torch.inf))
        return None if self.scale is None else gradient / self.scale.value

    def forget(self) -> None:
        """What arrived since the last call of `finite` is not used."""
        self._largest.clear()

    def finite(self, blocks: Iterable[ShardedRows]) -> torch.Tensor:
        """Whether all that arrived since the last call, and the rows' gradients, are finite: bool.

        Of this rank alone.
        """
        for rows in blocks:
            if (gradient := rows.weight.grad) is not None and gradient.numel():
                values = gradient._values() if gradient.is_sparse else gradient
                self._largest.append(torch.linalg.vector_norm(values, torch.inf))
        largest, self._largest = self._largest, []
        return torch.stack(largest).isfinite().all() if largest else torch.tensor(True)
