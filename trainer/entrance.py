"""Where drawn inputs enter a network: as images, or as what one of its blocks makes.

Behind that place they take the images' way. Both go through the network in one pass, so that batch
normalisation sees one batch, and whoever averages the gradients one backward pass.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from data_shards.settings import InputError
from trainer.backbones import Embedder, EmbedderSettings, build_embedder
from trainer.blocks import blocks, shapes

IMAGE: Literal["image"] = "image"
EMBEDDING: Literal["embedding"] = "embedding"
Place = Annotated[str, Field(pattern=r"^(embedding|image|block [1-9][0-9]?)$")]
"""``image``: as pixels from -1 to 1; ``block K``: behind the network's K-th block, see
`trainer.blocks.blocks`; ``embedding``: behind all of it."""


@dataclass
class Passing:
    """One forward pass with drawn inputs."""

    images: torch.Tensor | None = None
    """What the network made of the images where these enter: [b, *shape], with autograd."""


class Entrance:
    """A place before the end of one network."""

    def __init__(self, embedder: Embedder, place: str, image_size: tuple[int, int]) -> None:
        """`place` as `Place` has it, on images of `image_size` (height, width). Raises InputError
        for a block that the network has not got."""
        self._embedder, self.place, self._size = embedder, place, image_size
        self.shape: tuple[int, ...] = (3, *image_size)
        """Of one input there."""
        self._before: list[Any] = []
        """The trunk's parts up to the place, which follow each other."""
        if place == IMAGE:
            return
        found, made = blocks(embedder, image_size), shapes(embedder, image_size)
        if place not in found:
            raise InputError(
                f"drawn features cannot enter at {place}: the network has {', '.join(found)}: set "
                "at to one of these"
            )
        number = [part for part, _ in made].index(found[place])
        self._before = [part for part, _ in made[: number + 1]]
        self.shape = tuple(made[number][1][1:])

    def until(self, images: torch.Tensor) -> torch.Tensor:
        """What the network makes of `images` [b, 3, H, W] uint8 there: [b, *shape]."""
        made = self._embedder.pixels(images)
        for part in self._before:
            made = part(made)
        return made

    @torch.no_grad()
    def embedded(self, inputs: torch.Tensor) -> torch.Tensor:
        """The embeddings [n, d] of `inputs` [n, *shape], by a network in evaluation mode."""
        nothing = torch.zeros(1, 3, *self._size, dtype=torch.uint8, device=inputs.device)
        with self.joined(inputs):
            embeddings: torch.Tensor = self._embedder(nothing)
        return embeddings[1:]

    @contextmanager
    def joined(self, drawn: torch.Tensor) -> Iterator[Passing]:
        """Within it, the network's forward pass of b images has `drawn` [n, *shape], or as vectors
        of these numbers, enter behind them: it returns b + n embeddings. Raises InputError for
        those of another shape."""
        if drawn.dim() == 2 and drawn.shape[1] == math.prod(self.shape):
            drawn = drawn.unflatten(1, self.shape)
        passing = Passing()
        if drawn.shape[1:] != self.shape:
            raise InputError(
                f"drawn inputs are {_by(drawn.shape[1:])}, and at {self.place} the network has "
                f"{_by(self.shape)} now: replay needs the same data.image_size and embedder in all "
                "steps"
            )

        def behind(made: torch.Tensor) -> torch.Tensor:
            passing.images = made
            return torch.cat([made, drawn.to(made.dtype)])

        if self.place == IMAGE:
            hook = self._embedder.trunk.register_forward_pre_hook(
                lambda _, given: (behind(given[0]),)
            )
        else:
            hook = self._before[-1].register_forward_hook(lambda _, __, made: behind(made))
        try:
            yield passing
        finally:
            hook.remove()


@cache
def shape_at(
    embedder: EmbedderSettings, place: str, image_size: tuple[int, int]
) -> tuple[int, ...]:
    """The shape of one input at `place` of such a network. Raises InputError."""
    with torch.device("meta"):
        return Entrance(build_embedder(embedder), place, image_size).shape


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
