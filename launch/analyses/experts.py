"""Whether experts know their classes better than whom they teach (discriminative distillation)."""

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_shards.settings import InputError
from launch.analyses.networks import logits_of, network_of, tested_images
from launch.analyses.opened import chain_of, classifier_of, opened
from launch.phases.expert import TrainExpert
from launch.phases.planning import phases
from launch.phases.similar import SimilarClasses
from launch.runs.run import Chain, Run
from launch.terminal.progress import progress
from trainer.arrays import read_arrays
from trainer.mnemonics.unrolled import Labelled
from trainer.model import Model
from untrusted.text import printable


def experts(
    folder: Path, console: Console, method: str, against: str | None, seed: int | None = None
) -> list[dict[str, Any]]:
    """Accuracies among the classes of each step's expert, on their test images, by the largest of
    their logits: of the expert, of the `method` that it taught, and of the host `against`, where it
    is given. A row a step and network, of ``old`` and of ``new`` classes' images.

    Raises InputError, where no expert was kept too.
    """
    run, finished = opened(folder)
    chain = chain_of(run, finished, method, seed)
    hosts = [] if against is None else [chain_of(run, finished, against, chain.seed)]
    kept = [found for step in finished[chain] if (found := _expert(run, chain, step)) is not None]
    if not kept:
        raise InputError(
            f"{folder} holds no expert of {method}: its experts end with their steps unless "
            f"methods.{method}.expert.keep=true"
        )
    if not any(map(len, run.benchmark.classified)):
        raise InputError(f"{folder} tests no images of learned classes: set benchmark.classified")
    answered: list[dict[str, Any]] = []
    with progress(console, "asking experts", len(kept), "steps") as hear:
        for number, (step, expert, rows) in enumerate(kept, 1):
            images, old = _among(tested_images(run, step), rows), run.benchmark.rows_before(step)
            answers = {"its expert": logits_of(network_of(expert), images.images)}
            for other in (chain, *(own for own in hosts if step in finished[own])):
                model, _ = classifier_of(run, other, step)
                answers[other.method] = logits_of(network_of(model), images.images)[:, rows]
            for name, logits in answers.items():
                right = rows[logits.argmax(dim=1)] == images.labels
                of_old = images.labels < old
                row: dict[str, Any] = {"step": step, "network": name, "classes": len(rows)}
                row["old"] = float(right[of_old].float().mean())
                row["new"] = float(right[~of_old].float().mean())
                answered.append(row)
            hear(number)
    return answered


def _expert(run: Run, chain: Chain, step: int) -> tuple[int, Model, torch.Tensor] | None:
    """A step's expert and the classifier rows [n] of its classes, where both are there."""
    here = [p for p in phases(run) if p.at.chain == chain and p.at.number == step]
    outputs = {type(phase.kind): phase.output.path for phase in here}
    if TrainExpert not in outputs or not outputs[TrainExpert].exists():
        return None
    rows = read_arrays(outputs[SimilarClasses], needs=("rows",))["rows"]
    return step, Model.open(outputs[TrainExpert]), torch.from_numpy(rows)


def _among(images: Labelled, rows: torch.Tensor) -> Labelled:
    chosen = torch.isin(images.labels, rows)
    return Labelled(images.images[chosen], images.labels[chosen])


def experts_table(method: str, rows: list[dict[str, Any]]) -> Table:
    """A line a step and network."""
    title = f"accuracy among the classes of the experts of {printable(method)}, %"
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for name in ("step", "network", "classes", "old", "new"):
        table.add_column(name, justify="left" if name in ("step", "network") else "right")
    for row in rows:
        accuracies = (f"{100 * row[name]:.1f}" for name in ("old", "new"))
        table.add_row(f"{row['step']}", Text(row["network"]), f"{row['classes']:,}", *accuracies)
    return table
