"""MobileFaceNet, for faces of 112x112 (Chen et al. 2018, "MobileFaceNets: efficient CNNs for
accurate real-time face verification on mobile devices", Table 1).

What the table ends in, a linear 1x1 convolution with batch normalisation, is the embedder's own
projection.
"""

from collections.abc import Callable

import torch
from torch import nn

from trainer.networks.sizes import Places

FEATURES = 512
_STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Bottlenecks: expansion t, channels c, their number n, and the stride s of the first."""
_Activation = Callable[[int], nn.Module]
"""Makes one for so many channels."""


def _convolution(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    padding: int | None = None,
    each: bool = False,
    activation: _Activation | None = None,
) -> nn.Sequential:
    """A convolution with batch normalisation, linear without an `activation`; `each`: depthwise."""
    size = kernel // 2 if padding is None else padding
    groups = inputs if each else 1
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, size, groups=groups, bias=False)
    behind = [] if activation is None else [activation(outputs)]
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), *behind)


class _Bottleneck(nn.Module):
    """Widens, convolves each channel, narrows linearly; a shortcut where shapes stay."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, stride: int, activation: _Activation
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.layers = nn.Sequential(
            _convolution(inputs, inner, activation=activation),
            _convolution(inner, inner, 3, stride, each=True, activation=activation),
            _convolution(inner, outputs),
        )
        self._shortcut = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layers(x)
        return x + made if self._shortcut else made


def mobilefacenet(relu6: bool = False) -> nn.Sequential:
    """Images [b, 3, 112, 112] → [b, 512], one number a channel by the global depthwise convolution.

    With `relu6` a variant that published models have: ReLU6 in place of PReLU, and a 1x1
    convolution behind the first depthwise one, these two with ReLU.
    """
    activation: _Activation = (lambda _: nn.ReLU6(inplace=True)) if relu6 else nn.PReLU
    second: _Activation = (lambda _: nn.ReLU(inplace=True)) if relu6 else nn.PReLU
    # layer by layer: a stem and what makes one number a channel are no blocks (`trainer.blocks`)
    layers = [
        *_convolution(3, 64, 3, 2, activation=activation),
        *_convolution(64, 64, 3, each=True, activation=second),
        *(_convolution(64, 64, activation=second) if relu6 else ()),
    ]
    channels = 64
    for expansion, outputs, count, stride in _STAGES:
        stage = nn.Sequential()
        for number in range(count):
            first = stride if number == 0 else 1
            stage.append(_Bottleneck(channels, outputs, expansion, first, activation))
            channels = outputs
        layers.append(stage)
    layers += [
        _convolution(channels, FEATURES, activation=activation),
        Places(7, 112),
        *_convolution(FEATURES, FEATURES, 7, padding=0, each=True),
        nn.Flatten(),
    ]
    return nn.Sequential(*layers)
