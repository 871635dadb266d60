"""Adopts a model trained elsewhere: writes a model folder from the command's arguments."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from data_shards.settings import InputError, parse_size
from trainer.adopted import Pixels, Triple, read_embedder
from trainer.heads.margin_loss import ClassifierSettings
from trainer.model import Model, save_adopted
from untrusted.text_files import read_lines
from untrusted.yaml_text import parse_yaml


@dataclass(frozen=True)
class Outside:
    """The files of a model trained elsewhere."""

    file: Path
    architecture: str | None
    """The torchvision network, if the file holds weights."""
    layer: str | None
    """The network's layer to leave out."""
    classifier: Path | None
    names: Path | None


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
    settings, tensors = read_embedder(
        file=given.file,
        architecture=given.architecture,
        layer=given.layer,
        pixels=pixels,
        trust=trust,
    )
    weight, names = _classifier(given.classifier, given.names, settings.dimension)
    save_adopted(
        folder=out, settings=settings, tensors=tensors, classifier=loss, weight=weight, names=names
    )
    model = Model.open(out)
    console.print(
        f"✓ {out}: {settings.source}, d = {settings.dimension}, "
        f"{model.rows:,} identities, fingerprint {model.fingerprint}",
        soft_wrap=True,
    )
    if settings.batch:
        console.print(f"! it takes {settings.batch} images at a time, no other number")


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


def _classifier(
    file: Path | None, names: Path | None, dimension: int
) -> tuple[torch.Tensor, list[str]]:
    """The rows [C, d] and their names; no rows without a file. Raises InputError."""
    if (file is None) != (names is None):
        raise InputError("--classifier and --names go together: give both, or neither")
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
