"""Embedders: networks that map an image to a vector."""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from data_shards.counter_rng import stream_key
from data_shards.settings import InputError, Settings
from trainer.networks import NETWORKS
from trainer.networks.ibn import with_instance_norms
from trainer.networks.resnet32 import FEATURES, resnet32
from trainer.weight_transfer import Transfer, transfer_weights

_LATER = ("projection", "last_relu", "convolutions")
"""Settings that fingerprints name only where they are not the default: networks of before had no
other."""

_IBN = "_ibn_a"


class EmbedderSettings(Settings):
    """The network that turns an image into a vector."""

    architecture: Literal[
        "small",
        "resnet32",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnet50_ibn_a",
        "iresnet18",
        "iresnet34",
        "iresnet50",
        "iresnet100",
        "mobilefacenet",
        "mobilefacenet_relu6",
        "osnet",
        "vit_s8",
        "vit_s16",
    ] = "small"
    """A torchvision ResNet; resnet32, that of He et al. for images of 32 pixels, with 64 features
    and shortcuts without weights (option A); `small`: a few convolutions, for images of 32 pixels
    on a CPU; or a network of `trainer/networks`: iresnet and mobilefacenet for faces of 112x112
    (mobilefacenet_relu6: a variant without PReLU), osnet and resnet50_ibn_a for persons, usually of
    256x128, vit_s8 and vit_s16 with squares of 8 or 16 pixels, usually for 112x112 and 224x224."""
    dimension: int = Field(default=128, ge=1)
    """d, length of the embedding."""
    width: int = Field(default=16, ge=1)
    """Channels of the first convolution of `small`."""
    depth: int = Field(default=2, ge=1)
    """Convolutions of `small` at each of its three resolutions."""
    stem: Literal["standard", "small"] = "standard"
    """How a torchvision ResNet begins: `standard` divides the image's side by 4; `small` keeps it,
    for images of at most 64 pixels."""
    last_relu: bool = True
    """Whether the last convolution, or residual sum, is followed by a ReLU as those before."""
    projection: Literal["linear", "none"] = "linear"
    """linear: the embedding is a linear layer's of the network's features, behind a batch
    normalisation. none: it is the features themselves, and `dimension` their number."""
    activation: Literal["none", "relu", "cosine"] = "none"
    """Applied to the embedding. cosine: it is divided by its length, and multiplied by a number
    that is trained with the network and starts as 1 (eta of LUCIR); see the margin cosine."""

    convolutions: Transfer = "trained"
    """What is trained of them: all weights, or factors and shifts of channels or kernels, while
    weights stay. A method's `weight_transfer` sets it from step 1 on."""

    @model_validator(mode="after")
    def _has_what_is_set(self) -> "EmbedderSettings":
        if self.architecture in NETWORKS and (not self.last_relu or self.stem != "standard"):
            key = "stem" if self.last_relu else "last_relu"
            raise ValueError(f"{key} is not for {self.architecture}: leave it out")
        return self

    @model_validator(mode="after")
    def _embedding_fits(self) -> "EmbedderSettings":
        if self.projection == "none" and self.dimension != self.features:
            raise ValueError(
                f"dimension = {self.dimension}, but with projection = none the embedding is the "
                f"{self.features} features of {self.architecture}: set dimension={self.features}"
            )
        return self

    def deciding(self) -> dict[str, Any]:
        usual = type(self).model_fields
        return {
            name: value
            for name, value in super().deciding().items()
            if name not in _LATER or value != usual[name].default
        }

    @property
    def features(self) -> int:
        """How many numbers the network makes of an image, before any projection."""
        if self.architecture == "small":
            return 128 * self.width
        if self.architecture in NETWORKS:
            return NETWORKS[self.architecture].features
        few = {"resnet32": FEATURES, "resnet18": 512, "resnet34": 512}
        return few.get(self.architecture, 2048)

    def least_numbers(self) -> int:
        """A lower bound of the network's number of weights.

        For cards of untrusted models: one that describes a larger network than its weights is
        refused before the network takes memory.
        """
        projected = self.features * self.dimension if self.projection == "linear" else 0
        if self.architecture == "small":
            return projected + 9 * self.width * self.width * self.depth
        if self.architecture in NETWORKS:
            return projected + NETWORKS[self.architecture].weights
        return projected + (460_000 if self.architecture == "resnet32" else 11_000_000)


class _ScaledDirection(nn.Module):
    """eta x / |x|, with eta learned."""

    def __init__(self) -> None:
        super().__init__()
        self.eta = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.eta * F.normalize(x)


class Embedder(nn.Module):
    """Normalises uint8 images on their own device, runs the trunk, embeds: [b,3,H,W] → [b,d]."""

    def __init__(self, trunk: nn.Module, settings: EmbedderSettings) -> None:
        super().__init__()
        self.trunk = trunk
        self.project: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if settings.projection == "linear":
            self.project = nn.Linear(settings.features, settings.dimension, bias=False)
            self.norm = nn.BatchNorm1d(settings.dimension)
        kinds = {"none": nn.Identity, "relu": nn.ReLU, "cosine": _ScaledDirection}
        self.activation = kinds[settings.activation]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`images` [b, 3, H, W] uint8 → embeddings [b, d], not normalised."""
        return self.embed(self.pixels(images))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """`pixels` [b, 3, H, W], as `pixels` makes them → embeddings [b, d], not normalised."""
        return self.activation(self.norm(self.project(self.trunk(pixels))))

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """`images` [b, 3, H, W] uint8 as the trunk sees them: from -1 to 1."""
        pixels = images.to(next(self.trunk.parameters()).dtype).sub_(127.5).div_(127.5)
        # activations only: channels-last weights fail in DeepSpeed's initial broadcast, which views
        # them as bytes
        return pixels.contiguous(memory_format=torch.channels_last)


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _small(width: int, depth: int, last_relu: bool) -> nn.Module:
    stages = [(width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)]
    channels = [size for inner, last in stages for size in [*[inner] * (depth - 1), last]]
    strides = [1 + (number % depth == depth - 1) for number in range(len(channels))]
    layers = [
        _convolution(i, o, s) for i, o, s in zip([3, *channels], channels, strides, strict=False)
    ]
    if not last_relu:
        del layers[-1][-1]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
    return nn.Sequential(*layers, pool)


class _WithoutLastReLU(nn.Module):
    """A torchvision ResNet's block, whose one ReLU module is used between its layers, too."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        block = self.block
        out = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(x)))))
        if hasattr(block, "conv3"):
            out = block.bn3(block.conv3(block.relu(out)))
        return out + (x if block.downsample is None else block.downsample(x))


def _resnet(name: str, stem: str, last_relu: bool) -> nn.Module:
    import torchvision  # a second and a half, which most commands need not wait for

    network = torchvision.models.get_model(name.removesuffix(_IBN), weights=None)
    network.fc = nn.Identity()
    if name.endswith(_IBN):
        with_instance_norms(network)
    if not last_relu:
        network.layer4[-1] = _WithoutLastReLU(network.layer4[-1])
    if stem == "small":
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    return network


def build_embedder(settings: EmbedderSettings, seed: int = 0) -> Embedder:
    """A new embedder with random weights that depend on `seed` alone, not on torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream_key(seed, "embedder") >> 1))
        if settings.architecture == "small":
            trunk = _small(settings.width, settings.depth, settings.last_relu)
        elif settings.architecture == "resnet32":
            trunk = resnet32(settings.last_relu)
        elif settings.architecture in NETWORKS:
            trunk = NETWORKS[settings.architecture].build()
        else:
            trunk = _resnet(settings.architecture, settings.stem, settings.last_relu)
        if settings.convolutions != "trained" and settings.architecture.startswith("vit"):
            raise InputError(
                f"{settings.architecture} has one convolution: weight_transfer is for networks of "
                "convolutions, such as resnet50"
            )
        embedder = Embedder(trunk, settings)
        transfer_weights(embedder.trunk, settings.convolutions)
        return embedder
