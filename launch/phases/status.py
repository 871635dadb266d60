"""What a run folder says of its run."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from launch.config.load import kept_config
from launch.phases.planning import pending, phases
from launch.runs.ledger import Ledger
from launch.runs.remembered import check_locations
from launch.runs.run import Run
from monitoring.goodput import goodput, goodput_tables
from monitoring.records import Damage, events, ledger, metrics, told
from monitoring.run_folder import LEDGER_FILE
from untrusted.text import printable


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
    damage: Damage = {}
    finished = Ledger(folder / LEDGER_FILE, ledger(folder, damage))
    every = phases(run)
    todo = {phase.name for phase in pending(every, finished)}
    table = Table(title=Text(printable(str(folder))), title_justify="left")
    table.add_column("chain")
    steps = range(run.config.learning_steps)
    for step in steps:
        table.add_column(f"step {step}")
    for chain in run.chains():
        cells = []
        for step in steps:
            own = [p for p in every if p.at.chain == chain and p.at.number == step]
            left = [p.kind.name for p in own if p.name in todo]
            cells.append(Text(left[0], "yellow") if left else Text("done", "green"))
        table.add_row(chain.name, *cells)
    yield table
    yield f"{len(every) - len(todo)} of {len(every)} phases are done"
    if (spent := goodput(folder)) is not None:
        yield from goodput_tables(spent)
    happened = [event["message"] for event in events(folder, damage) if "message" in event]
    if happened:
        yield Text(printable(f"{len(happened)} events, the newest: {happened[-1]}"))
    records = metrics(folder, damage)
    if records and todo:
        yield Text(printable(_newest(records[-1])))
    for line in told(damage):
        yield Text(line, "yellow")


def _newest(record: dict[str, Any]) -> str:
    """The newest record of training in words."""
    ago = f", {time.time() - record['time']:.0f} s ago" if "time" in record else ""
    words = [f"newest record{ago}: {record['phase']}"]
    words += [f"iteration {record['iteration']:,} of {record['of']:,}"]
    words += [f"loss {record['loss']:.5g}"] if "loss" in record else []
    if "images_per_second" in record:
        words.append(f"{record['images_per_second']:,.0f} images/s")
    return ", ".join(words)
