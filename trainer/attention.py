"""Which places of an image speak for a class: Grad-CAM (Selvaraju et al. 2017, "Grad-CAM: visual
explanations from deep networks via gradient-based localization", Eqs. 1 and 2).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from trainer.backbones import Embedder
from trainer.blocks import blocks


def grad_cam(
    embedder: Embedder, images: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """[n, h, w] the maps of `images` [n, 3, H, W] uint8 by the last block of a network in
    evaluation mode (`trainer.blocks.blocks`), at its resolution, none below 0.

    `logits` makes of embeddings [n, d] one number an image [n], that of the class asked about. A
    channel weighs as much as the mean over places of that number's derivative by it; the map is
    what the weighted channels add up to, and 0 where that speaks against the class.
    """
    *_, last = blocks(embedder, (images.shape[2], images.shape[3])).values()
    with _leaf(last) as made, torch.enable_grad():
        chosen = logits(embedder(images))
        (features,) = made
        # in evaluation mode no image changes another's number, so that the sum has each one's own
        (gradient,) = torch.autograd.grad(chosen.sum(), features)
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * features.detach()).sum(dim=1).relu()


@contextmanager
def _leaf(part: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within it, what `part` makes is a leaf of autograd's graph, and in the list that is yielded:
    nothing before it is derived, nor kept for that."""
    made: list[torch.Tensor] = []

    def cut(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        made.append(output.detach().requires_grad_())
        # a view, so that a layer behind may work in place
        return made[-1].view_as(made[-1])

    hook = part.register_forward_hook(cut)
    try:
        yield made
    finally:
        hook.remove()


def at_size(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[n, H, W] `maps` [n, h, w] drawn to `size` (height, width) bilinearly, each with 1 as its
    largest value; one that is 0 everywhere stays 0."""
    drawn = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    most = drawn.amax(dim=(1, 2), keepdim=True)
    return torch.where(most > 0, drawn / most.clamp_min(torch.finfo(drawn.dtype).tiny), 0)
