"""The blocks of an embedder's network, and what they make of images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import nn

from trainer.backbones import Embedder
from trainer.networks.vit import Layers


def blocks(embedder: Embedder, image_size: tuple[int, int]) -> dict[str, nn.Module]:
    """The last module of each block of the network by the block's name, from the image on.

    A block is what happens at one resolution and width: a longest run of the trunk's parts whose
    outputs have one shape on images of `image_size`. Of torchvision's ResNets these are layer1 to
    layer4, of resnet32 its three stages, of `small` the places between its strides, of osnet its
    first convolution, too; a ViT, whose maps keep their shape, has its layers by three. What lies
    before the first part that has layers of its own (a stem), or has no weights (a pooling), is
    none. They are named block 1, block 2, ...
    """
    made = shapes(embedder, image_size)
    runs = ([part for part, _ in run] for _, run in groupby(made, key=_block_of))
    found = [run[-1] for run in runs if any(_has_layers(part) for part in run)]
    return {f"block {number}": part for number, part in enumerate(found, 1)}


def shapes(
    embedder: Embedder, image_size: tuple[int, int]
) -> Sequence[tuple[nn.Module, torch.Size]]:
    """The trunk's parts in their order, each with the shape [1, ...] of what it makes of an image
    of `image_size`. Nothing of the embedder changes."""
    shapes: list[tuple[nn.Module, torch.Size]] = []

    def note(module: nn.Module, _: object, made: torch.Tensor) -> None:
        shapes.append((module, made.shape))

    hooks = [part.register_forward_hook(note) for part in embedder.trunk.children()]
    device = next(embedder.parameters()).device
    nothing = torch.zeros(1, 3, *image_size, dtype=torch.uint8, device=device)
    # each module's own: a batch normalisation may be held in a network that trains
    training = {module: module.training for module in embedder.modules()}
    embedder.eval()  # one image would change a batch normalisation's statistics
    try:
        with torch.inference_mode():
            embedder(nothing)
    finally:
        for module, trains in training.items():
            module.training = trains
        for hook in hooks:
            hook.remove()
    return shapes


def _block_of(one: tuple[nn.Module, torch.Size]) -> tuple[torch.Size, int]:
    """What is equal for parts of one block that follow each other: the shape, and a ViT's block."""
    part, shape = one
    return shape, id(part) if isinstance(part, Layers) else 0


def _has_layers(part: nn.Module) -> bool:
    """Whether it consists of other modules and has weights."""
    return any(True for _ in part.children()) and any(True for _ in part.parameters())


@contextmanager
def watched(parts: dict[str, nn.Module]) -> Iterator[dict[str, torch.Tensor]]:
    """Yields what each of `parts` made of the last batch, [b, c, h, w] or [b, d], by name."""
    made: dict[str, torch.Tensor] = {}

    def keep(name: str) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, __: object, output: torch.Tensor) -> None:
            made[name] = output.detach()

        return parts[name].register_forward_hook(note)

    hooks = [keep(name) for name in parts]
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()


def per_place(made: torch.Tensor) -> torch.Tensor:
    """[b·h·w, c] of [b, c, h, w]: every place of every image is a sample; [b, d] stays as it is.

    SVCCA compares the channels of convolutions in this way (Raghu et al., Sec. 4).
    """
    return made.flatten(2).transpose(1, 2).flatten(0, 1) if made.dim() == 4 else made
