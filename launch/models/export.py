"""Writes a model as one file for a service, after comparing it with the model's own embedder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from data_shards.files import write_atomically
from data_shards.settings import InputError
from launch.models.compare import TwoModelTest
from launch.terminal.progress import progress
from monitoring.run_folder import decision_beside
from trainer.decisions import Decision
from trainer.evaluation.compatibility.comparison import compare
from trainer.evaluation.compatibility.vectors import Embedded
from trainer.exporting import FORMATS, Exported, Parity, parities, quantised, random_images
from trainer.model import Model


@dataclass(frozen=True)
class Wanted:
    """What is to be exported, and how."""

    to: str
    """A key of `FORMATS`."""
    out: Path
    classes: bool = False
    """Whether the classifier goes along, with its decision."""
    int8: bool = False
    """Whether weights are of 8 bits."""
    test: str | None = None
    """A configuration, or a test set's folder or URL, whose images both are compared on."""

    def check(self) -> None:
        """Raises InputError for what does not go together."""
        form = FORMATS[self.to]
        if self.out.exists():
            raise InputError(f"--out {self.out} exists: give another file")
        if self.out.suffix not in form.endings:
            raise InputError(f"--out {self.out}: end its name in {' or '.join(form.endings)}")
        if self.classes and not form.classes:
            raise InputError(f"--classes: {self.to} holds the embedder's weights alone")
        if self.int8 and self.to != "onnx":
            raise InputError("--int8 is of ONNX graphs: say --to onnx")
        if self.int8 and self.test is None:
            raise InputError("--int8 changes vectors: say --on TEST_SET, to see what that costs")

    @property
    def names(self) -> Path:
        """Where the classes' names are written, a line each."""
        return self.out.with_suffix(".classes.txt")


def run_export(model: Model, wanted: Wanted, console: Console) -> None:
    """Writes the file `wanted`, and prints how far its vectors are from the embedder's.

    Leaves no file where they differ by more than rounding. Raises InputError.
    """
    wanted.check()
    form, names = FORMATS[wanted.to], model.names() if wanted.classes else []
    program = Exported(model, _decision(model) if wanted.classes else None)
    # opened before anything is exported, which takes its time
    test = None if wanted.test is None else TwoModelTest.open(wanted.test, program.size)
    content = form.write(program)
    runs = form.read(content)
    compared = parities(model, program, runs, random_images(program.size))
    _hold(compared, "16 random images and 2 of them singly", wanted, console)
    if test is not None:
        ours = _embedded(test, model, test.embedded, "model", console)
        theirs = _exported(test, model, runs, console)
        images = f"{len(ours.samples):,} images of {wanted.test}"
        _hold([_parity(ours, theirs)], images, wanted, console)
        if wanted.int8:
            content = quantised(content)
            theirs = _exported(test, model, form.read(content), console)
            console.print(f"int8 on {images}: {_parity(ours, theirs).written()}", soft_wrap=True)
            console.print(cost_table(test, ours, theirs))
    if wanted.classes:
        write_atomically(wanted.names, "".join(f"{name}\n" for name in names).encode())
    write_atomically(wanted.out, content)  # last: it comes with its names
    _tell(model, program, wanted, len(content), console)


def _decision(model: Model) -> Decision:
    if not model.rows:
        raise InputError(f"--classes: {model.folder} knows no class: leave it out")
    beside = decision_beside(model.folder)
    return Decision.open(beside, model) if beside.exists() else Decision()


def _hold(compared: list[Parity], images: str, wanted: Wanted, console: Console) -> None:
    """Prints how far outputs are apart. Raises InputError where it is more than rounding."""
    for name, parity in zip(("vectors", "scores"), compared, strict=False):
        console.print(f"{name} of {images}: {parity.written()}", soft_wrap=True)
        if not parity.holds:
            raise InputError(
                f"{wanted.out} is not written: its {name} differ from the model's by "
                f"{parity.share:.1%} of their length; try another --to, and report it"
            )


Embeds = Callable[[Model, Callable[..., None]], Embedded]


def _embedded(
    test: TwoModelTest, model: Model, embeds: Embeds, name: str, console: Console
) -> Embedded:
    with progress(console, f"embedding, {name}", len(test.trials.samples), "images") as hear:
        return embeds(model, lambda completed, total: hear(completed))


def _exported(test: TwoModelTest, model: Model, runs: Any, console: Console) -> Embedded:
    def embeds(of: Model, hear: Callable[..., None]) -> Embedded:
        return test.embedded_by(lambda images: runs(images)[0], of, hear)

    return _embedded(test, model, embeds, "exported", console)


def _parity(ours: Embedded, theirs: Embedded) -> Parity:
    return Parity.of(*(torch.from_numpy(one.vectors) for one in (ours, theirs)))


def cost_table(test: TwoModelTest, before: Embedded, after: Embedded) -> Table:
    """What other vectors of the same images cost at the test's operating points, in percent."""
    settings = test.settings.model_copy(update={"paragon": None})
    found = compare(test.trials, before, after, None, settings, test.dataset.names, backfill=False)
    change = f"change of the latter, {found['confidence']:.0%} interval"
    heads = ("%", "model", "int8", "int8 queries, the model's gallery", change)
    table = Table(*heads)
    for column in table.columns[1:]:
        column.justify = "right"
    for point in found["points"]:
        gain = point["gain"]
        cells = [f"{100 * point[key]:.2f}" for key in ("old_old", "new_new", "new_old")]
        spread = f"[{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]"
        table.add_row(point["point"], *cells, f"{100 * gain['value']:+.2f} {spread}")
    return table


def _tell(model: Model, program: Exported, wanted: Wanted, size: int, console: Console) -> None:
    facts = program.facts()
    console.print(f"✓ {wanted.out}: {wanted.to}, {size:,} bytes, of model {model.fingerprint}")
    console.print(f"  {facts['input']}", soft_wrap=True)
    console.print(f"  {facts['output']}", soft_wrap=True)
    if wanted.classes:
        console.print(f"  scores [n, {model.rows:,}] of the classes in {wanted.names}")
    if wanted.int8:
        # onnxruntime takes an activation's range over the whole batch
        console.print("! vectors of 8 bits depend a little on the other images of their batch")
    if model.centre is not None:
        console.print(f"! it expects the middle {model.centre:.1%} of an image: crop before")
