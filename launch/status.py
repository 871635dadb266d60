"""What a run folder says of its run."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from launch.config import kept_config
from launch.folder import Run
from launch.ledger import Ledger
from launch.phases import pending, phases
from launch.remembered import check_locations
from monitoring.goodput import goodput, goodput_tables
from monitoring.records import read_jsonl


def open_run(folder: Path) -> Run:
    """The run that a folder was made by. Raises InputError.

    A stranger's folder does not decide where this machine looks for images.
    """
    config = kept_config(folder)
    check_locations(folder, config.model_dump(mode="json"))
    return Run.open(folder, config)


def status_table(folder: Path) -> Iterator[Any]:
    """A table of chains against learning steps, and the newest record of training."""
    run = open_run(folder)
    todo = {phase.name for phase in pending(run, Ledger(folder / "ledger.jsonl"))}
    table = Table(title=str(folder), title_justify="left")
    table.add_column("chain")
    steps = range(run.config.learning_steps)
    for step in steps:
        table.add_column(f"step {step}")
    every = phases(run)
    for chain in run.chains():
        cells = []
        for step in steps:
            own = [p for p in every if p.chain == chain and p.step == step]
            left = [p.kind for p in own if p.name in todo]
            cells.append(Text(left[0], "yellow") if left else Text("done", "green"))
        table.add_row(chain.name, *cells)
    yield table
    yield f"{len(every) - len(todo)} of {len(every)} phases are done"
    if (spent := goodput(folder)) is not None:
        yield from goodput_tables(spent)
    told = [event for event in read_jsonl(folder / "events.jsonl") if "message" in event]
    if told:
        yield f"{len(told)} events, the newest: {told[-1]['message']}"
    records = read_jsonl(folder / "metrics.jsonl")
    if records and todo:
        last = records[-1]
        ago = time.time() - last["time"]
        yield (
            f"newest record, {ago:.0f} s ago: {last['phase']}, iteration {last['iteration']} of "
            f"{last['of']}, loss {last['loss']:.3f}, {last['images_per_second']:,.0f} images/s"
        )
