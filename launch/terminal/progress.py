"""Progress of commands: a bar on a terminal, otherwise a line every half minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from untrusted.text import printable

_PLAIN_SECONDS = 30.0


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.{0 if self._unit == 'images' else 2}f} {self._unit}/s")


@contextmanager
def progress(
    console: Console, what: str, total: int | None, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Shows the progress of `what`; yields a function to call with the number of items done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(unit),
    )
    begun = shown = time.monotonic()
    first: list[int] = []
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(printable(what), total=total)

        def hear(done: int) -> None:
            nonlocal shown
            if not first:
                bar.reset(task, completed=done)  # items done by an earlier call have no rate
                first.append(done)
            bar.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and now - shown >= _PLAIN_SECONDS:
                shown, rate = now, (done - first[0]) / (now - begun)
                left = f", {(total - done) / rate / 60:,.0f} min left" if total and rate else ""
                of = f" of {total:,}" if total else ""
                console.print(f"{what}: {done:,}{of} {unit}, {rate:,.1f}/s{left}")

        yield hear
