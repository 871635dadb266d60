"""ViT-S, a transformer over the squares of an image (Dosovitskiy et al. 2021, "An image is worth
16x16 words"; the small one of Touvron et al. 2021, DeiT): 12 layers of 384 numbers, 6 heads.

The features are the mean of all squares, without a class token (Beyer et al. 2022, "Better plain
ViT baselines"). Squares of 16 pixels for images of 224, of 8 for faces of 112 (Zhong and Deng 2021,
"Face transformer for recognition"): both have 14 x 14.
"""

import torch
from torch import nn
from torch.nn import functional as F

from data_shards.settings import InputError

FEATURES = 384
_LAYERS, _HEADS, _SIDE = 12, 6, 14
BLOCKS = 4
"""Its layers, all of maps of one shape, by three: as many as other networks have."""


class _Layer(nn.Module):
    """Attention among all squares, then two linear layers of each one; normalised before both."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(FEATURES, eps=1e-6)
        self.qkv = nn.Linear(FEATURES, 3 * FEATURES)
        self.proj = nn.Linear(FEATURES, FEATURES)
        self.norm2 = nn.LayerNorm(FEATURES, eps=1e-6)
        self.fc1 = nn.Linear(FEATURES, 4 * FEATURES)
        self.fc2 = nn.Linear(4 * FEATURES, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, n, d] → the same shape."""
        # [b, n, 3 d] → three of [b, heads, n, d / heads]
        asked = self.qkv(self.norm1(x)).unflatten(2, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(asked[0], asked[1], asked[2])
        x = x + self.proj(seen.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Layers(nn.Sequential):
    """Layers that follow each other, of maps [b, d, h, w], as convolutions have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squares = super().forward(x.flatten(2).transpose(1, 2))
        return squares.transpose(1, 2).unflatten(2, x.shape[2:])


class _Squares(nn.Conv2d):
    """Cuts images into squares of `side` pixels, and adds what is learned of each place.

    Places are those of 14 x 14 squares, drawn to other sizes bilinearly.
    """

    def __init__(self, side: int) -> None:
        super().__init__(3, FEATURES, side, side)
        self.places = nn.Parameter(torch.empty(1, FEATURES, _SIDE, _SIDE))
        nn.init.trunc_normal_(self.places, std=0.02)
        self._side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        if height % self._side or width % self._side:
            raise InputError(
                f"the network cuts images into squares of {self._side} pixels, and of "
                f"{height}x{width} some would be left: set data.image_size to multiples"
            )
        made = super().forward(x)
        places: torch.Tensor = self.places
        if made.shape[2:] != places.shape[2:]:
            places = F.interpolate(places, made.shape[2:], mode="bilinear", align_corners=False)
        return made + places


class _Mean(nn.LayerNorm):
    """Normalises every square and takes their mean: [b, d, h, w] → [b, d]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(2).transpose(1, 2)).mean(dim=1)


def vit(side: int) -> nn.Sequential:
    """Images [b, 3, H, W] → [b, 384]; H and W are multiples of `side`, that of a square, pixels."""
    network = nn.Sequential()
    network.add_module("squares", _Squares(side))
    for number in range(BLOCKS):
        layers = (_Layer() for _ in range(_LAYERS // BLOCKS))
        network.add_module(f"block{number + 1}", Layers(*layers))
    network.add_module("mean", _Mean(FEATURES, eps=1e-6))
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return network
