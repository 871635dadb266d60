"""The residual network for images of 32 pixels (He et al. 2016, Sec. 4.2), 32 layers deep."""

import torch
from torch import nn
from torch.nn import functional as F

_BLOCKS = 5
"""n, blocks of each stage: 6n + 2 layers, the paper's linear one among them."""
FEATURES = 64


class _Block(nn.Module):
    """Two convolutions and a shortcut that has no weights (the paper's option A): where channels
    grow, it takes every `stride`-th pixel and adds channels of zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int, last_relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self._stride, self._added, self._last_relu = stride, outputs - inputs, last_relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self._added:
            x = F.pad(x[:, :, :: self._stride, :: self._stride], (0, 0, 0, 0, 0, self._added))
        out = out + x
        return F.relu(out) if self._last_relu else out


def resnet32(last_relu: bool) -> nn.Sequential:
    """Images [b, 3, H, W] → the pooled features [b, 64], with or without a ReLU before pooling.

    Convolutions start as in the paper, normal with variance 2 / (9 · output channels).
    """
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
    ]
    channels = 16
    for stage in (16, 32, FEATURES):
        for block in range(_BLOCKS):
            last = (stage, block) == (FEATURES, _BLOCKS - 1)
            stride = 1 if stage == channels else 2
            layers.append(_Block(channels, stage, stride, last_relu or not last))
            channels = stage
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
