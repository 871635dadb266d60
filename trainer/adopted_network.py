"""Models trained elsewhere whose network is one of ours, so that they can be trained on."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from data_shards.settings import InputError
from trainer.adopted import Pixels, build_adopted, graph_bytes, read_graph, tried
from trainer.backbones import Embedder, EmbedderSettings, build_embedder
from trainer.batch_norm import measure_batch_norm
from trainer.graph_weights import take_graph
from trainer.weights import Tensors, load_weights, read_state_dict, renamed

_APART, _ROUNDING = 1e-3, 2e-6
"""How far a network's vectors may be from the graph's: of how far these lie from their mean over
images, and, for float32, of their length."""
_MIDDLE = 127.5
Batches = Callable[[], Iterable[torch.Tensor]]
"""Reads images that the model was made for: batches [b, 3, H, W] uint8."""


def read_network(
    file: Path, architecture: str, pixels: Pixels, batches: Batches | None
) -> tuple[EmbedderSettings, Tensors]:
    """The settings and weights of the network in `file`, an ONNX graph or a state dict.

    `batches` are for graphs whose batch normalisations are folded. Raises InputError.
    """
    if set(pixels.mean) != {_MIDDLE}:
        raise InputError(
            f"--mean: {architecture} is trained on with pixels around {_MIDDLE}, and another mean "
            "cannot be put into its weights: adopt the model without --architecture, or let "
            "training begin with the weights by `start`"
        )
    if file.suffix == ".onnx":
        return _of_graph(file, architecture, pixels, batches)
    given, settings = read_state_dict(file), EmbedderSettings(architecture=architecture)
    project = renamed(given, settings).get("project.weight")
    if project is None or project.dim() != 2:
        raise InputError(
            f"{file} has no last layer of {architecture}, so that it makes no embedding: let "
            "training begin with it by `start`"
        )
    settings = EmbedderSettings(architecture=architecture, dimension=len(project))
    embedder = build_embedder(settings).eval()
    load_weights(embedder, settings, given, str(file))
    _take_pixels(embedder, pixels)
    with torch.inference_mode():
        embedder(_noise(pixels))  # refuses another size of images
    return settings, embedder.state_dict()


def _of_graph(
    file: Path, architecture: str, pixels: Pixels, batches: Batches | None
) -> tuple[EmbedderSettings, Tensors]:
    graph = tried(*read_graph(file, pixels, trust=False), str(file))
    settings = EmbedderSettings(architecture=architecture, dimension=graph.dimension)
    embedder = build_embedder(settings).eval()
    folded = take_graph(embedder, graph_bytes(file), pixels.size, str(file))
    _take_pixels(embedder, pixels)
    reference = build_adopted(graph, read_graph(file, pixels, trust=False)[1])
    _compare(embedder, reference, pixels, str(file))
    if folded:
        if batches is None:
            raise InputError(
                f"{file} has its batch normalisations folded into convolutions: give --images "
                "SHARDS, images that the model is for, by which their statistics are found again"
            )
        measure_batch_norm(embedder, batches())
        _compare(embedder, reference, pixels, str(file))
    return settings, embedder.state_dict()


@torch.no_grad()
def _take_pixels(embedder: Embedder, pixels: Pixels) -> None:
    """Puts what `pixels` says beside the mean into the first convolution: the embedder's own pixels
    are RGB, divided by 127.5."""
    first = next(m for m in embedder.trunk.modules() if isinstance(m, torch.nn.Conv2d))
    weight = first.weight * (_MIDDLE / torch.tensor(pixels.std)).view(1, 3, 1, 1)
    first.weight.copy_(weight.flip(1) if pixels.bgr else weight)


def _noise(pixels: Pixels) -> torch.Tensor:
    """Random images [4, 3, H, W] uint8, from coarse to fine: noise alone is all the same to some
    networks."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 8, 8, generator=generator) * 255
    drawn = torch.nn.functional.interpolate(coarse, pixels.size, mode="bilinear")
    fine = torch.randint(-20, 21, drawn.shape, generator=generator)
    return (drawn + fine).clamp(0, 255).to(torch.uint8)


@torch.inference_mode()
def _compare(embedder: Embedder, reference: torch.nn.Module, pixels: Pixels, source: str) -> None:
    """Raises InputError where the network's vectors of random images are not the graph's.

    Against their spread, not their length: a network that was hardly trained gives all images
    nearly one vector, and with other weights nearly that one, too.
    """
    images = _noise(pixels)
    expected, found = reference(images), embedder.eval()(images)
    apart = (found - expected).norm(dim=1)
    spread = (expected - expected.mean(dim=0)).norm(dim=1)
    if not (apart <= _APART * spread + _ROUNDING * expected.norm(dim=1)).all():
        raise InputError(
            f"{source} is not of this --architecture: with its weights vectors are off by "
            f"{float((apart / spread).max()):.1%} of how much they differ between images; give "
            "another one, or adopt the graph as it is, without --architecture"
        )
