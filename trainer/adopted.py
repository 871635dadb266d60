"""Embedders trained elsewhere: reading, checking, running and saving them.

A model folder of an adopted embedder holds an ONNX graph's bytes, or a torchvision network's
weights, in ``embedder.safetensors``, and the expected images in its card: only data. Programs are
converted to graphs on adoption, the only time that they are run (`trainer.conversion`).
"""

import difflib
import warnings
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import interpolate

from data_shards.settings import InputError, Settings
from trainer.conversion import Kind, converted
from trainer.onnx_graphs import Program, checked, first_line, load_graph
from trainer.weights import read_state_dict, without_prefix
from untrusted.files import read_bytes

PROGRAMS: dict[str, Kind] = {".pt": "torchscript", ".ts": "torchscript", ".pt2": "exported"}
_GRAPH_BYTES = (1 << 31) - 1
"""The largest graph, as protobuf reads."""
Side = Annotated[int, Field(ge=1, le=4096)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Triple = tuple[float, float, float]
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_ALIKE = 1e-4  # of a vector's length: at another batch size, sums are rounded in another order


class Pixels(Settings):
    """The images that an adopted model expects."""

    size: tuple[Side, Side]
    """Height and width, pixels; images of another size are resized, bilinearly, with antialiasing.
    """
    mean: tuple[Finite, Finite, Finite]
    """Subtracted from each channel, on the scale 0 to 255, in the order of the model's channels."""
    std: tuple[Positive, Positive, Positive]
    """What each channel is then divided by, on the scale 0 to 255."""
    bgr: bool = False
    """The model's channels are blue, green, red."""


class AdoptedSettings(Settings):
    """An embedder that this product did not train."""

    source: Literal["onnx", "torchvision"]
    """An ONNX graph, or the weights of a torchvision network."""
    converted: Kind | None = None
    """The kind of program that the graph was converted from; none: it was given as a graph."""
    architecture: str | None = None
    """The torchvision network."""
    layer: str | None = None
    """Its layer that is left out, whose input is the embedding; none: no layer is."""
    pixels: Pixels
    """The images that it expects."""
    dimension: int = Field(default=0, ge=0)
    """d, length of the embedding."""
    batch: int | None = Field(default=None, ge=1, le=_BATCHES[-1])
    """Images that a graph takes at a time, where only one number works."""


class AdoptedEmbedder(nn.Module):
    """Prepares images for an adopted network or graph, and runs it."""

    _mean: torch.Tensor
    _std: torch.Tensor

    def __init__(self, network: nn.Module, settings: AdoptedSettings) -> None:
        super().__init__()
        self._network, self._pixels, self.batch = network, settings.pixels, settings.batch
        self._dimension = settings.dimension
        self.register_buffer("_mean", torch.tensor(self._pixels.mean).view(3, 1, 1))
        self.register_buffer("_std", torch.tensor(self._pixels.std).view(3, 1, 1))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """`images` [b, 3, h, w] uint8 RGB → the network's pixels [b, 3, H, W] float32."""
        pixels = images.float()
        if images.shape[2:] != self._pixels.size:
            pixels = interpolate(pixels, self._pixels.size, mode="bilinear", antialias=True)
        if self._pixels.bgr:
            pixels = pixels.flip(1)
        return (pixels - self._mean) / self._std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`images` [b, 3, h, w] uint8 → embeddings [b, d] float32, not normalised."""
        pixels = self.prepare(images).contiguous()
        if self.batch is None:
            return self._vectors(pixels)
        parts = []
        for part in pixels.split(self.batch):  # the last part is filled up with copies
            full = torch.cat([part, part[-1:].expand(self.batch - len(part), -1, -1, -1)])
            parts.append(self._vectors(full)[: len(part)])
        return torch.cat(parts)

    def _vectors(self, pixels: torch.Tensor) -> torch.Tensor:
        vectors = self._network(pixels)
        if not isinstance(vectors, torch.Tensor) or len(vectors) != len(pixels):
            raise ValueError("it does not return one tensor with a vector for each image")
        vectors = vectors.flatten(1).float()
        if self._dimension not in (0, vectors.shape[1]):
            raise InputError(
                f"the adopted model gives vectors of {vectors.shape[1]:,} numbers, and its card "
                f"says {self._dimension:,}: adopt it again"
            )
        return vectors


class _Graph(nn.Module):
    """A graph as a module; it runs on the CPU, on whichever device its images are."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._program(pixels.cpu()).to(pixels.device)


def build_adopted(settings: AdoptedSettings, tensors: dict[str, torch.Tensor]) -> AdoptedEmbedder:
    """The embedder that `tensors` hold, in evaluation mode on the CPU. Raises InputError."""
    if settings.source == "torchvision":
        network = _torchvision(settings, tensors)
    else:
        if (content := tensors.get("graph")) is None or content.dtype != torch.uint8:
            raise InputError("the adopted model holds no graph: adopt it again")
        network = _Graph(load_graph(content.numpy().tobytes(), "the adopted model's graph"))
    return AdoptedEmbedder(network, settings).eval()


def _torchvision(settings: AdoptedSettings, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """The torchvision network with the weights `tensors`. Raises InputError if they do not fit."""
    network = _untrained(settings.architecture or "")
    linear = linear_layers(network)
    if settings.layer is not None:
        _check_layer(settings.layer, network, settings.architecture)
        network.set_submodule(settings.layer, nn.Identity())
    elif linear:
        name, last = linear[-1]
        weight = tensors.get(f"{name}.weight")
        # a weight of another width is refused below, before its length is used to allocate memory
        if weight is not None and weight.shape[1:] == (last.in_features,):
            bias = f"{name}.bias" in tensors
            network.set_submodule(name, nn.Linear(last.in_features, len(weight), bias))
    try:
        missing, unexpected = network.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise InputError(
            f"not the weights of {settings.architecture}: {lines[-1].strip()}"
        ) from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        lacking = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is not part of it"
        raise InputError(
            f"not the weights of {settings.architecture}: {lacking}; give another --architecture "
            "or --layer, or rename the tensors"
        )
    return network


def _check_layer(layer: str, network: nn.Module, architecture: str | None) -> None:
    names = [name for name, _ in network.named_modules()]
    if layer == "" or layer not in names:
        raise InputError(f"--layer: give a layer of {architecture}, such as {names[-1]}, or none")


def _untrained(architecture: str) -> nn.Module:
    import torchvision  # takes its time

    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, 1)
        hint = f"did you mean {near[0]}?" if near else "see torchvision.models.list_models()"
        raise InputError(f"--architecture {architecture!r} is no torchvision classifier: {hint}")
    with warnings.catch_warnings(action="ignore"):  # of initial values that are not used
        return torchvision.models.get_model(architecture, weights=None)


def linear_layers(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of a network by name; torchvision's classifiers come last."""
    return [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Linear)]


def read_weights(
    file: Path, architecture: str, layer: str | None, pixels: Pixels
) -> tuple[AdoptedSettings, dict[str, torch.Tensor]]:
    """A torchvision network's settings, and the weights it needs from a safetensors file.

    `layer` is left out, with its weights; None: the last linear one; "none": no layer is. Raises
    InputError.
    """
    network = _untrained(architecture)
    linear = linear_layers(network)
    if layer is None and not linear:
        raise InputError(f"--layer: {architecture} has no linear layer: name one, or say none")
    if layer is None:
        layer = linear[-1][0]
    elif layer == "none":
        layer = None
    else:
        _check_layer(layer, network, architecture)
    tensors = without_prefix(read_state_dict(file), set(network.state_dict()))
    kept = {k: t for k, t in tensors.items() if layer is None or not k.startswith(f"{layer}.")}
    settings = AdoptedSettings(
        source="torchvision", architecture=architecture, layer=layer, pixels=pixels
    )
    return settings, kept


def read_graph(
    file: Path, pixels: Pixels, trust: bool
) -> tuple[AdoptedSettings, dict[str, torch.Tensor]]:
    """A graph's settings, and its bytes [n] uint8 as `graph`; with `trust` of a program, converted.

    Raises InputError.
    """
    kind = PROGRAMS.get(file.suffix)
    if kind is None:
        content = graph_bytes(file)
    elif trust:
        content = converted(kind, file, pixels.size)
    else:
        raise InputError(
            f"{file} is a program, and reading it runs it: give the network as .onnx or its "
            "weights as .safetensors, or say --trust if you would run this file"
        )
    held = torch.frombuffer(bytearray(checked(content, str(file))), dtype=torch.uint8)
    return AdoptedSettings(source="onnx", converted=kind, pixels=pixels), {"graph": held}


def graph_bytes(file: Path) -> bytes:
    """The content of an ONNX file. Raises InputError."""
    try:
        return read_bytes(file, _GRAPH_BYTES)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error


def read_embedder(
    file: Path, architecture: str | None, layer: str | None, pixels: Pixels, trust: bool = False
) -> tuple[AdoptedSettings, dict[str, torch.Tensor]]:
    """Reads a model trained elsewhere and tries it: its settings, and `build_adopted`'s tensors.

    A program is run, and converted to a graph, only with `trust`. Raises InputError naming the file
    and the remedy.
    """
    if not file.is_file():
        raise InputError(f"{file} does not exist: give a model's file")
    if file.suffix == ".safetensors":
        if architecture is None:
            raise InputError(f"{file} holds weights alone: say whose, by --architecture resnet50")
        settings, tensors = read_weights(file, architecture, layer, pixels)
    elif file.suffix in (".onnx", *PROGRAMS):
        if architecture is not None or layer is not None:
            raise InputError(f"{file} is a whole network: leave out --architecture and --layer")
        settings, tensors = read_graph(file, pixels, trust)
    else:
        raise InputError(
            f"{file}: {file.suffix or 'no'} files are not read, pickles least of all: save the "
            "weights as .safetensors, or the network as .onnx"
        )
    return tried(settings, tensors, str(file)), tensors


@torch.inference_mode()
def tried(
    settings: AdoptedSettings, tensors: dict[str, torch.Tensor], name: str
) -> AdoptedSettings:
    """Runs the embedder, and returns `settings` with its dimension and, if only one batch size
    works, with that.

    Raises InputError when it cannot be run, or when an image's vector depends on the others of its
    batch.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = settings.pixels.size
    images = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8, generator=generator)
    batches = (None,) if settings.source == "torchvision" else (None, *_BATCHES)
    failures: list[Exception] = []
    embedder = build_adopted(settings, tensors)
    for batch in batches:
        embedder.batch = batch
        try:
            together = embedder(images)
            alone = torch.cat([embedder(images[i : i + 1]) for i in range(3)])
        except Exception as error:  # a stranger's program raises whatever it runs into
            failures.append(error)
            continue
        _check(together, alone, name)
        return settings.model_copy(update={"dimension": together.shape[1], "batch": batch})
    raise InputError(
        f"{name} cannot be run on images of {height}×{width}: {first_line(failures[0])}; give its "
        "--size, and export it with a batch of any size or of one image"
    )


def _check(together: torch.Tensor, alone: torch.Tensor, name: str) -> None:
    """Compares the vectors [3, d] of one batch of three with those of three batches of one.

    Raises InputError when they differ, as they do in training mode.
    """
    if not together.isfinite().all():
        raise InputError(f"{name} gives vectors that are not finite: check --mean and --std")
    apart = (together - alone).norm(dim=1) / alone.norm(dim=1).clamp_min(1e-12)
    if apart.max() > _ALIKE:
        raise InputError(
            f"{name}: an image's vector depends on the other images of its batch, or on chance "
            f"(off by {float(apart.max()):.1%}): export the network in evaluation mode"
        )
