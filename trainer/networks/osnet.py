"""OSNet x1.0, for persons (Zhou et al. 2019, "Omni-scale feature learning for person
re-identification", Sec. 3 and Table 1).

Modules have the names of the authors' released weights. The paper's fully connected layer, its
batch normalisation and ReLU are the embedder's projection and activation.
"""

import torch
from torch import nn

FEATURES = 512
_SCALES = 4
"""T, streams of a block: of one to four small convolutions."""
_NARROWED = 4
"""A block's streams have a quarter of its channels."""
_REDUCTION = 16
"""Of the gate's hidden layer."""


class _Convolution(nn.Module):
    """A convolution with batch normalisation and, unless it is `linear`, a ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu: nn.Module = nn.Identity() if linear else nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.relu(self.bn(self.conv(x)))
        return made


class _Light(nn.Module):
    """Lite 3x3: a linear 1x1 convolution, then a depthwise 3x3 one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv2(self.conv1(x))).relu()


class _Gate(nn.Module):
    """The aggregation gate G: a factor from 0 to 1 for each channel; one gate for all streams."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // _REDUCTION, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factors = self.fc2(self.fc1(x.mean(dim=(2, 3), keepdim=True)).relu()).sigmoid()
        return x * factors


class _Block(nn.Module):
    """Residual, with streams of growing receptive fields, gated and added up (Eq. 3)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = outputs // _NARROWED
        self.conv1 = _Convolution(inputs, inner)
        self.conv2a = _Light(inner)
        self.conv2b = nn.Sequential(*(_Light(inner) for _ in range(2)))
        self.conv2c = nn.Sequential(*(_Light(inner) for _ in range(3)))
        self.conv2d = nn.Sequential(*(_Light(inner) for _ in range(_SCALES)))
        self.gate = _Gate(inner)
        self.conv3 = _Convolution(inner, outputs, linear=True)
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            self.downsample = _Convolution(inputs, outputs, linear=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow = self.conv1(x)
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        gated = [self.gate(stream(narrow)) for stream in streams]
        made: torch.Tensor = self.conv3(sum(gated)) + self.downsample(x)
        return made.relu()


def _stage(inputs: int, outputs: int, halves: bool) -> nn.Sequential:
    """Two blocks and, if it `halves` the maps, a transition: a 1x1 convolution and 2x2 means."""
    stage = nn.Sequential(_Block(inputs, outputs), _Block(outputs, outputs))
    if halves:
        stage.append(nn.Sequential(_Convolution(outputs, outputs), nn.AvgPool2d(2)))
    return stage


def osnet() -> nn.Sequential:
    """Images [b, 3, H, W], usually of 256x128 → the pooled features [b, 512]."""
    network = nn.Sequential()
    network.add_module("conv1", _Convolution(3, 64, 7, 2))
    network.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
    network.add_module("conv2", _stage(64, 256, halves=True))
    network.add_module("conv3", _stage(256, 384, halves=True))
    network.add_module("conv4", _stage(384, 512, halves=False))
    network.add_module("conv5", _Convolution(512, FEATURES))
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flatten", nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
