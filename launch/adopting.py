"""Adopts a model from outside: what was given on the command line becomes a model folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file

from data_shards.settings import InputError, parse_size
from launch.config import differences
from launch.folder import Chain, Run
from trainer.adopted import AdoptedSettings, Pixels, Triple, read_embedder
from trainer.checkpoint import Folder
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings
from trainer.model import Model, save_adopted
from untrusted.text_files import read_lines
from untrusted.yaml_text import parse_yaml


@dataclass(frozen=True)
class Outside:
    """The files of a model from outside."""

    file: Path
    architecture: str | None
    """Of weights: the torchvision network."""
    layer: str | None
    """Its layer to leave out."""
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
    """Writes the model folder `out` and says what it holds. Raises InputError.

    `scale` is the mean and the standard deviation, for pixels from 0 to 1 if `unit`, else 255.
    With `trust` a program may be run, once, to be converted.
    """
    if out.exists():
        raise InputError(f"--out {out} exists: give another folder")
    mean, std = (_channels(*each, unit) for each in zip(("mean", "std"), scale, strict=True))
    pixels = Pixels(size=parse_size(size), mean=mean, std=std, bgr=bgr)
    loss = _margin(margin)
    settings, tensors = read_embedder(given.file, given.architecture, given.layer, pixels, trust)
    weight, names = _classifier(given.classifier, given.names, settings.dimension)
    save_adopted(out, settings, tensors, loss, weight, names)
    model = Model.open(out)
    console.print(
        f"✓ {out}: {settings.source}, d = {settings.dimension}, "
        f"{model.rows:,} identities, fingerprint {model.fingerprint}",
        soft_wrap=True,
    )
    if settings.batch:
        console.print(f"! it takes {settings.batch} images at a time, no other number")


def _channels(option: str, text: str, unit: bool) -> Triple:
    """One number a channel, on the scale 0 to 255. Raises InputError for what cannot be meant."""
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
    """The rows [C, d] and their names; none where there is no file. Raises InputError."""
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


def check_given(run: Run) -> None:
    """Raises InputError when a chain cannot begin with the model that it is given."""
    adopted, teacher = run.adopted, run.config.teacher
    if adopted is not None:
        if not adopted.adopted:
            raise InputError(
                f"adopted: {adopted.folder} was trained here: give its run to `continues`"
            )
        if adopted.rows:
            _row_order(run, adopted)
    names = next(iter(run.given.values())).names() if run.config.continues else []
    for chain, model in run.given.items():
        if run.config.continues and model.names() != names:
            raise InputError(
                f"the models of {run.config.continues} know different identities: continue "
                f"{chain.name} in a run of its own"
            )
        if model.adopted and (teacher.precision != "fp32" or teacher.compile):
            raise InputError(
                "adopted models run as they are: leave out teacher.precision and .compile"
            )
        if len(run.benchmark.row_ends) > 1:
            _check_recipe(run, chain, model)


def _check_recipe(run: Run, chain: Chain, model: Model) -> None:
    """Raises InputError when step 1 of `chain` needs what `model`, its step 0, does not have."""
    recipe, name = run.recipe(chain, 1), chain.method
    needs, going_on = recipe.needs, recipe.start == "previous"
    if going_on and model.adopted:
        raise InputError(
            f"methods.{name} goes on training the model before, and an adopted one cannot be "
            "trained: use a method that starts from scratch, such as bct-sys"
        )
    if not model.rows and (needs.answers or (needs.classifier and not needs.class_means)):
        raise InputError(
            f"methods.{name} asks the old model's classifier, and {model.folder} has none: use "
            "bct-sys, or adopt the model with --classifier and --names"
        )
    if going_on:
        ours = {"embedder": run.embedder(chain, 1), "classifier": run.classifier(chain, 1)}
        theirs = {"embedder": model.settings, "classifier": model.classifier}
        old, new = (
            {k: v.model_dump(exclude={"memory"}) for k, v in of.items()} for of in (theirs, ours)
        )
        if changed := differences(old, new):
            raise InputError(
                f"methods.{name} goes on training {model.folder}, which differs in "
                f"{'; '.join(changed[:3])}: leave them as they were, or use a method that starts "
                "from scratch, such as bct-sys"
            )
    if run.config.continues is not None and recipe.data == "all":
        shown = np.zeros(model.rows, dtype=bool)
        shown[run.benchmark.row_of_identity[run.dataset.identity[run.benchmark.steps[0]]]] = True
        if missing := int((~shown).sum()):
            raise InputError(
                f"methods.{name} trains on every identity so far, and {run.config.dataset} has no "
                f"image of {missing:,} of the {model.rows:,} that {model.folder} knows: merge the "
                "datasets, or use a method that needs no old images, such as fkd"
            )


def _row_order(run: Run, model: Model) -> list[int]:
    """For each classifier row of step 0, the adopted model's row of that name.

    Raises InputError when its identities are not those of step 0.
    """
    place = {name: row for row, name in enumerate(model.names())}
    row_of, last = run.benchmark.row_of_identity, run.benchmark.row_ends[0]
    known = np.flatnonzero((row_of >= 0) & (row_of < last))
    names = run.dataset.names[known[np.argsort(row_of[known])]].tolist()
    if set(names) != place.keys():
        odd = sorted(set(names) ^ place.keys())[0]
        lacks = "has no row for" if odd in set(names) else "has a row for"
        raise InputError(
            f"adopted: {model.folder} {lacks} {odd!r}, and its {len(place):,} rows must be the "
            f"{last:,} identities of learning step 0: name these in benchmark.file, or adopt the "
            "model without its classifier"
        )
    return [place[name] for name in names]


def take_adopted(run: Run, out: Path) -> Model:
    """Makes the adopted model that of step 0, in `out`: its rows in the benchmark's order."""
    model = run.adopted
    assert model is not None and isinstance(model.settings, AdoptedSettings)
    order = _row_order(run, model) if model.rows else []
    weight = model.sharded_rows(Ranks()).weight.detach()[order]
    names = model.names()
    tensors = Folder.at(model.folder).tensors("embedder")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_adopted(
        out, model.settings, tensors, model.classifier, weight, [names[row] for row in order]
    )
    return Model.open(out)
