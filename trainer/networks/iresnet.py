"""The improved ResNets of face recognition (Duta et al. 2020; ArcFace, Deng et al. 2019, Sec. 3.2):
3x3 first convolution, PReLU, batch normalisation before each block's first convolution, and a last
layer with a weight for each of 7x7 places.

Modules have the names of InsightFace's released weights. Their dropout before the last layer is
left out: the released configurations set it to 0.
"""

import torch
from torch import nn

from trainer.networks.sizes import Places

FEATURES = 512 * 7 * 7
BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
"""How many of them each of the four stages has."""


class _Block(nn.Module):
    """Two convolutions between batch normalisations; the sum with the shortcut stays linear."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        made = self.bn3(self.conv2(made)) + self.downsample(x)
        return made


def iresnet(name: str) -> nn.Sequential:
    """Images [b, 3, 112, 112] → [b, 25088], every place of the last maps: `project` is the last
    layer and `norm` the batch normalisation behind it.

    Convolutions start normal with a standard deviation of 0.1, as released code has it.
    """
    network = nn.Sequential()
    network.add_module("conv1", nn.Conv2d(3, 64, 3, 1, 1, bias=False))
    network.add_module("bn1", nn.BatchNorm2d(64))
    network.add_module("prelu", nn.PReLU(64))
    channels = 64
    for number, count in enumerate(BLOCKS[name], 1):
        outputs = 32 << number
        stage = [
            _Block(channels if n == 0 else outputs, outputs, 1 + (n == 0)) for n in range(count)
        ]
        network.add_module(f"layer{number}", nn.Sequential(*stage))
        channels = outputs
    network.add_module("bn2", nn.BatchNorm2d(channels))
    network.add_module("places", Places(7, 112))
    network.add_module("flatten", nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, 0.1)
    return network
