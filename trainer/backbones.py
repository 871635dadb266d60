"""Embedders: networks that map an image to a vector."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from data_shards.counter_rng import stream_key
from data_shards.settings import Settings


class EmbedderSettings(Settings):
    """The network that turns an image into a vector."""

    architecture: Literal["small", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = (
        "small"
    )
    """A torchvision ResNet, or `small`: a few convolutions, for images of 32 pixels on a CPU."""
    dimension: int = Field(default=128, ge=1)
    """d, length of the embedding."""
    width: int = Field(default=16, ge=1)
    """Channels of the first convolution of `small`."""
    depth: int = Field(default=2, ge=1)
    """Convolutions of `small` at each of its three resolutions."""
    stem: Literal["standard", "small"] = "standard"
    """How a ResNet begins: `standard` divides the image's side by 4; `small` keeps it, for images
    of at most 64 pixels."""
    activation: Literal["none", "relu"] = "none"
    """Applied to the embedding."""

    def least_numbers(self) -> int:
        """A lower bound of the network's number of weights.

        For cards of untrusted models: one that describes a larger network than its weights is
        refused before the network takes memory.
        """
        if self.architecture != "small":
            return 512 * self.dimension
        return 128 * self.width * self.dimension + 9 * self.width * self.width * self.depth


class Embedder(nn.Module):
    """Normalises uint8 images on their own device, runs the trunk, embeds: [b,3,H,W] → [b,d]."""

    def __init__(
        self, trunk: nn.Module, features: int, dimension: int, activation: str = "none"
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.project = nn.Linear(features, dimension, bias=False)
        self.norm = nn.BatchNorm1d(dimension)
        self.activation = nn.ReLU() if activation == "relu" else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`images` [b, 3, H, W] uint8 → embeddings [b, d], not normalised."""
        pixels = images.to(self.project.weight.dtype).sub_(127.5).div_(127.5)
        # activations only: channels-last weights fail in DeepSpeed's initial broadcast, which views
        # them as bytes
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return self.activation(self.norm(self.project(self.trunk(pixels))))


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _small(width: int, depth: int) -> tuple[nn.Module, int]:
    stages = [(width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)]
    channels = [size for inner, last in stages for size in [*[inner] * (depth - 1), last]]
    strides = [1 + (number % depth == depth - 1) for number in range(len(channels))]
    layers = [
        _convolution(i, o, s) for i, o, s in zip([3, *channels], channels, strides, strict=False)
    ]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return nn.Sequential(*layers, pool), channels[-1] * 16


def _resnet(name: str, stem: str) -> tuple[nn.Module, int]:
    import torchvision  # a second and a half, which most commands need not wait for

    network = torchvision.models.get_model(name, weights=None)
    features = network.fc.in_features
    network.fc = nn.Identity()
    if stem == "small":
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    return network, features


def build_embedder(settings: EmbedderSettings, seed: int = 0) -> Embedder:
    """A new embedder with random weights that depend on `seed` alone, not on torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream_key(seed, "embedder") >> 1))
        if settings.architecture == "small":
            trunk, features = _small(settings.width, settings.depth)
        else:
            trunk, features = _resnet(settings.architecture, settings.stem)
        return Embedder(trunk, features, settings.dimension, settings.activation)
