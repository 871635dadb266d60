"""Adopts a model trained elsewhere: writes a model folder from the command's arguments."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import normalize

from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.settings import InputError, parse_size
from data_shards.storage.dataset import ShardDataset
from trainer.adopted import AdoptedSettings, Pixels, Triple, read_embedder
from trainer.adopted_network import read_network
from trainer.backbones import EmbedderSettings
from trainer.gallery import Gallery
from trainer.heads.margin_loss import ClassifierSettings
from trainer.model import Model, save_adopted
from trainer.networks import NETWORKS
from untrusted.text import tsv_cells
from untrusted.text_files import read_lines
from untrusted.yaml_text import parse_yaml

OURS = (*NETWORKS, "resnet50_ibn_a")
"""Networks whose weights become a model that can be trained on."""
_IMAGES, _BATCH = 256, 32


@dataclass(frozen=True)
class Outside:
    """The files of a model trained elsewhere."""

    file: Path
    architecture: str | None
    """The torchvision network, if the file holds weights, or one of `trainer.networks`, which can
    be trained on."""
    layer: str | None
    """The network's layer to leave out."""
    classifier: Path | None
    names: Path | None
    gallery: Path | None = None
    """Its vectors, whose means by identity are its classifier."""
    images: str | None = None
    """Images that the model is for, by which lost statistics of batch normalisation are found."""


def run_adopt(
    given: Outside,
    out: Path,
    size: str,
    scale: tuple[str, str],
    unit: bool,
    bgr: bool,
    margin: str,
    console: Console,
    trust: bool = False,
) -> None:
    """Writes the model folder `out` and prints a line on it. Raises InputError.

    `scale` is the mean and the standard deviation, of pixels from 0 to 1 if `unit`, else to 255.
    With `trust` a program may be run, once, to convert it.
    """
    if out.exists():
        raise InputError(f"--out {out} exists: give another folder")
    mean, std = (_channels(*each, unit) for each in zip(("mean", "std"), scale, strict=True))
    pixels = Pixels(size=parse_size(size), mean=mean, std=std, bgr=bgr)
    loss = _margin(margin)
    settings, tensors = _network(given, pixels, trust)
    weight, names = _classifier(given, settings.dimension)
    save_adopted(
        folder=out,
        settings=settings,
        tensors=tensors,
        classifier=loss,
        weight=weight,
        names=names,
        image_size=pixels.size if isinstance(settings, EmbedderSettings) else None,
    )
    model = Model.open(out)
    what = f"{settings.architecture}, to be trained on"
    if isinstance(settings, AdoptedSettings):
        what = settings.source
    console.print(
        f"✓ {out}: {what}, d = {settings.dimension}, "
        f"{model.rows:,} identities, fingerprint {model.fingerprint}",
        soft_wrap=True,
    )
    if isinstance(settings, AdoptedSettings) and settings.batch:
        console.print(f"! it takes {settings.batch} images at a time, no other number")


def _network(
    given: Outside, pixels: Pixels, trust: bool
) -> tuple[EmbedderSettings | AdoptedSettings, dict[str, torch.Tensor]]:
    """The embedder's settings and tensors. Raises InputError."""
    if given.architecture in OURS:
        if given.layer is not None or trust:
            raise InputError(
                f"--layer and --trust are not for {given.architecture}: give its weights or graph"
            )
        batches = None if given.images is None else partial(_images, given.images, pixels)
        return read_network(given.file, given.architecture, pixels, batches)
    if given.images is not None:
        raise InputError(
            f"--images are for networks to be trained on: say --architecture {OURS[0]}"
        )
    return read_embedder(
        file=given.file,
        architecture=given.architecture,
        layer=given.layer,
        pixels=pixels,
        trust=trust,
    )


def _images(location: str, pixels: Pixels) -> Iterator[torch.Tensor]:
    """Some images of a dataset, spread over it, as the network is to see them: [b, 3, H, W]."""
    dataset = ShardDataset.open(location)
    # whole batches alone: all count alike
    count = max(_BATCH, min(_IMAGES, len(dataset)) // _BATCH * _BATCH)
    chosen = np.linspace(0, len(dataset) - 1, count).astype(np.int64)
    requests = (
        Request.plain(dataset, chosen[i : i + _BATCH]) for i in range(0, len(chosen), _BATCH)
    )
    settings = PipelineSettings(image_size=pixels.size)
    for _, images in ImageStream(dataset, requests, _BATCH, settings, augmented=False):
        yield images


def _channels(option: str, text: str, unit: bool) -> Triple:
    """One number a channel, on the scale 0 to 255.

    Raises InputError for text that is no numbers, or numbers on the other scale.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or (option == "std" and min(values) <= 0):
        raise InputError(f"--{option} {text!r}: give one number or three, such as 127.5")
    if unit and max(values) > 1:
        raise InputError(f"--{option} {text} is not on the scale 0 to 1: leave out --unit")
    if not unit and option == "mean" and 0 < max(values) <= 1:
        raise InputError(f"--mean {text} is on the scale 0 to 1: add --unit")
    red, green, blue = (255 * v if unit else v for v in (values * 3)[:3])
    return red, green, blue


def _margin(text: str) -> ClassifierSettings:
    values = dict(part.partition("=")[::2] for part in text.split(","))
    try:
        margin = {key: parse_yaml(value, f"--margin {key}") for key, value in values.items()}
        return ClassifierSettings.model_validate({"margin": margin})
    except (ValidationError, InputError) as error:
        raise InputError(
            f"--margin {text!r} is none: write kind=cosface,scale=64,margin=0.4, or see "
            "classifier.margin in `perennial config`"
        ) from error


def _classifier(given: Outside, dimension: int) -> tuple[torch.Tensor, list[str]]:
    """The rows [C, d] and their names; no rows without a file. Raises InputError."""
    file, names = given.classifier, given.names
    if (file is None) != (names is None) or (file and given.gallery):
        raise InputError(
            "--classifier and --names go together, in place of --gallery: give both, or neither"
        )
    if given.gallery is not None:
        return _means(given.gallery, dimension)
    if file is None or names is None:
        return torch.empty(0, dimension), []
    try:
        weight = load_file(file).get("weight")
    except (OSError, SafetensorError) as error:
        raise InputError(f"--classifier {file} is no safetensors file: {error}") from error
    if weight is None or weight.ndim != 2 or weight.shape[1] != dimension:
        found = "no `weight`" if weight is None else f"a weight of {list(weight.shape)}"
        raise InputError(f"{file} holds {found}: [C, {dimension}] is needed, d as the embedding's")
    rows = read_lines(names, "--names")
    if len(rows) != len(weight) or len(set(rows)) != len(rows):
        raise InputError(
            f"{names} has {len(rows):,} lines, {len(set(rows)):,} different, for {len(weight):,} "
            "rows: one name of its own for each is needed"
        )
    return weight.float(), rows


def _means(folder: Path, dimension: int) -> tuple[torch.Tensor, list[str]]:
    """The mean directions [C, d] of a gallery's identities, and their names. Raises InputError."""
    gallery = Gallery.open(folder)
    owners = [tsv_cells(line)[1] for line in read_lines(folder / "ids.tsv", "--gallery")[1:]]
    (model, found), *others = gallery.dimensions.items()
    if others or found != dimension:
        raise InputError(
            f"--gallery {folder} must hold vectors of this one model: give one of {dimension:,} "
            "numbers a vector that is not being upgraded"
        )
    every = list(gallery.vectors(model, len(owners)))
    samples = np.concatenate([samples for samples, _ in every])
    vectors = torch.from_numpy(np.concatenate([vectors for _, vectors in every]))
    names, place = np.unique([owners[sample] for sample in samples], return_inverse=True)
    sums = torch.zeros(len(names), dimension, dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(place), normalize(vectors.double()))
    return normalize(sums).float(), names.tolist()
