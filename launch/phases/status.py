"""What a run folder says of its run, without its dataset and without torch."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from launch.config.absent import no_run
from launch.runs.ledger import Ledger
from monitoring import planned
from monitoring.goodput import goodput, goodput_tables
from monitoring.records import Damage, events, ledger, metrics, told
from monitoring.run_folder import LEDGER_FILE, chain_name, is_run
from monitoring.schemas import PlannedPhase, phase_of
from untrusted.text import printable

if TYPE_CHECKING:
    from launch.runs.run import Run


def open_run(folder: Path) -> "Run":
    """The run that a folder was made by. Raises InputError.

    A stranger's folder does not decide where this machine looks for images.
    """
    from launch.config.load import kept_config
    from launch.runs.remembered import check_locations
    from launch.runs.run import Run

    config = kept_config(folder)
    check_locations(folder, config.model_dump(mode="json"))
    return Run.open(folder, config)


def _planned(folder: Path, damage: Damage) -> list[PlannedPhase]:
    """Every phase of a run; worked out anew where its folder does not say them."""
    if not is_run(folder):
        raise no_run(folder)
    kept = planned.kept(folder, damage)
    if kept is not None:
        return kept
    from launch.phases.planning import phases

    return [phase.planned for phase in phases(open_run(folder))]


def _grid(folder: Path, every: list[PlannedPhase], todo: set[str]) -> Table:
    """Chains against learning steps: each one's first phase to do."""
    table = Table(title=Text(printable(str(folder))), title_justify="left")
    table.add_column("chain")
    steps: dict[str, dict[int, list[PlannedPhase]]] = {}
    for phase in every:
        method, seed, step, _ = phase_of(phase["phase"]) or ("", 0, 0, "")
        steps.setdefault(chain_name(method, seed), {}).setdefault(step, []).append(phase)
    numbers = sorted({number for own in steps.values() for number in own})
    for number in numbers:
        table.add_column(f"step {number}")
    for chain, own in steps.items():
        cells = []
        for number in numbers:
            left = [p["kind"] for p in own.get(number, []) if p["phase"] in todo]
            cells.append(Text(left[0], "yellow") if left else Text("done", "green"))
        table.add_row(chain, *cells)
    return table


def status_table(folder: Path) -> Iterator[Any]:
    """A table of chains against learning steps, and the newest record of training.

    Raises InputError where `folder` is no run's.
    """
    damage: Damage = {}
    every = _planned(folder, damage)
    finished = Ledger(folder / LEDGER_FILE, ledger(folder, damage))
    todo = set(planned.pending(every, finished.has, folder))
    yield _grid(folder, every, todo)
    yield f"{len(every) - len(todo)} of {len(every)} phases are done"
    if (spent := goodput(folder)) is not None:
        yield from goodput_tables(spent)
    happened = [event["message"] for event in events(folder, damage) if "message" in event]
    if happened:
        yield Text(printable(f"{len(happened)} messages, the newest: {happened[-1]}"))
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
