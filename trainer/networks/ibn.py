"""IBN-a: instance beside batch normalisation (Pan et al. 2018, "Two at once: enhancing learning and
generalization capacities via IBN-Net", Sec. 3.2), as person re-identification uses it.
"""

from typing import Any

import torch
from torch import nn

_STAGES = ("layer1", "layer2", "layer3")
"""conv2_x to conv4_x: the last stage keeps batch normalisation."""


class InstanceBatchNorm(nn.Module):
    """Instance normalisation of the first half of the channels, batch normalisation of the rest."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self._half = channels // 2
        self.IN = nn.InstanceNorm2d(self._half, affine=True)
        self.BN = nn.BatchNorm2d(channels - self._half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, rest = x.split((self._half, x.shape[1] - self._half), dim=1)
        return torch.cat([self.IN(first.contiguous()), self.BN(rest.contiguous())], dim=1)


def with_instance_norms(network: Any) -> nn.Module:
    """Replaces the first normalisation of each block in all stages of a torchvision ResNet but the
    last, in place."""
    for name in _STAGES:
        for block in network.get_submodule(name):
            block.bn1 = InstanceBatchNorm(block.bn1.num_features)
    return network
