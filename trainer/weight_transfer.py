"""Weight transfer: convolutions that stay as they are, but for factors and a shift of each channel.

Of mnemonics (Liu et al. 2020), after meta-transfer learning (Sun et al. 2019): from the second
learning step on Phi_1, which begins as 1, multiplies a convolution's weights, and Phi_2, which
begins as 0, is added to what it makes. So a step has fewer weights to forget with.
"""

from typing import Any, Literal

import torch
from torch import nn

Transfer = Literal["trained", "channels", "kernels"]
"""What is trained of convolutions. trained: their weights. channels: one factor and one shift of
each output channel. kernels: one factor of each pair of an input and an output channel, as released
code has it, and the shift. Batch normalisation over the batch's own statistics takes any factor and
shift of a whole channel out again: behind it, `channels` trains its own scales and shifts alone."""


class TransferredConvolution(nn.Conv2d):
    """Begins as the convolution whose weights it is given, to the last bit."""

    def __init__(self, original: nn.Conv2d, transfer: Transfer) -> None:
        """Takes the original's weights, and its bias for the shift."""
        super().__init__(
            original.in_channels,
            original.out_channels,
            original.kernel_size,  # type: ignore[arg-type]
            original.stride,  # type: ignore[arg-type]
            original.padding,  # type: ignore[arg-type]
            original.dilation,  # type: ignore[arg-type]
            original.groups,
            bias=False,
            device="meta",
        )
        del self.weight
        # a buffer: whatever asks for parameters, such as optimisers and penalties, passes it over
        self.register_buffer("weight", original.weight.detach())
        inputs = self.weight.shape[1] if transfer == "kernels" else 1
        self.factor = nn.Parameter(self.weight.new_ones(len(self.weight), inputs, 1, 1))
        shift = torch.zeros_like(self.weight[:, 0, 0, 0])
        self.shift = nn.Parameter(shift if original.bias is None else original.bias.detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [b, inputs, H, W] → [b, outputs, H', W']."""
        return self._conv_forward(x, self.weight * self.factor, self.shift)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # a model that was trained in whole has none: they begin
        for name in ("factor", "shift"):
            state_dict.setdefault(prefix + name, getattr(self, name).detach())
        super()._load_from_state_dict(state_dict, prefix, *others)


def transfer_weights(module: nn.Module, transfer: Transfer) -> None:
    """Replaces every convolution within `module`, in place; nothing where they are trained."""
    if transfer == "trained":
        return
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, TransferredConvolution(child, transfer))
        else:
            transfer_weights(child, transfer)
