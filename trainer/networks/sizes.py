"""What networks say of images whose size they are not made for."""

import torch
from torch import nn

from data_shards.settings import InputError


class Places(nn.Module):
    """Passes on maps [b, c, side, side], and refuses those of another size.

    What follows has weights for each place, so that images of another size have none. Raises
    InputError.
    """

    def __init__(self, side: int, image: int) -> None:
        """`image` is the side of the images that give such maps, pixels."""
        super().__init__()
        self._side, self._image = side, image

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != (self._side, self._side):
            raise InputError(
                f"the network is for images of {self._image}x{self._image}: its last layer has "
                f"weights for {self._side}x{self._side} places, and these images give "
                f"{x.shape[2]}x{x.shape[3]}: set data.image_size={self._image}x{self._image}, or "
                "another embedder.architecture, such as resnet50 or osnet"
            )
        return x
