"""Shows how a run gets on (a live line on a terminal, a line a phase elsewhere) and logs it."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from monitoring.logs import LOG
from monitoring.run_metrics import RunMetrics


def in_words(record: dict[str, Any]) -> str:
    """A record of `trainer.loop` for people."""
    words = (
        f"loss {record['loss']:.3f}, {record['images_per_second']:,.0f} images/s, "
        f"data wait {record['data_wait_share']:.0%}"
    )
    counts = (count for count in ("skipped", "rewinds", "restarts") if record.get(count))
    return ", ".join([words, *(f"{count} {record[count]}" for count in counts)])


class RunProgress:
    """The driver tells it of phases and of workers' records; it draws."""

    def __init__(self, console: Console, iterations: int, phases: int, metrics: RunMetrics) -> None:
        """`iterations` and `phases` still to do over the whole run; `metrics` hears all of it."""
        self._console, self._phases, self._number = console, phases, 0
        self._metrics, self._turns = metrics, 0
        self._live = Progress(
            TextColumn("{task.fields[phase]}", style="bold", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", markup=False),
            TextColumn("run: {task.percentage:.0f}%, left"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._live.add_task(
            "run", total=max(1, iterations), phase="starting", detail=""
        )
        self._done, self._in_phase = 0.0, 0.0
        self.context: dict[str, Any] = {}
        """Where the run is, for its log."""

    def __enter__(self) -> "RunProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def begin(self, phase: str) -> None:
        """A phase starts."""
        self._number += 1
        self._begun, self._name, self._last = time.monotonic(), phase, ""
        self._done += self._in_phase
        self._in_phase = 0.0
        self._live.update(self._task, phase=f"{self._number}/{self._phases} {phase}", detail="")
        self._metrics.begin(phase)
        self.context = {"phase": phase}
        LOG.info("begins")

    def ranks(self, expected: int, heard: int, turns: int) -> None:
        """How many ranks there should be and are, and how much they have done together."""
        self._metrics.ranks(expected, heard)
        if turns != self._turns:
            self._turns = turns
            self._metrics.gets_on()

    def training(self, record: dict[str, Any]) -> None:
        """A worker's record of `trainer.loop`."""
        self._in_phase, self._last = record["iteration"], in_words(record)
        detail = f"iteration {record['iteration']}/{record['of']}, {self._last}"
        self._live.update(self._task, completed=self._done + self._in_phase, detail=detail)

    def notice(self, line: str) -> None:
        """Something that the user should know; the run goes on."""
        LOG.warning("%s", line)
        self._console.print(f"! {line}", highlight=False, soft_wrap=True)

    def units(self, done: int, of: int) -> None:
        """Units of a CPU phase are done."""
        self._last = f"{done}/{of} units"
        self._metrics.gets_on()
        self._live.update(self._task, detail=self._last)

    def end(self, result: str = "") -> None:
        """The phase is finished; `result` is worth a word."""
        self._metrics.end()
        words = ", ".join(filter(None, [result, self._last]))
        seconds = time.monotonic() - self._begun
        LOG.info("finished in %.1f s: %s", seconds, words or "done")
        self.context = {}
        self._console.print(
            f"✓ {self._number}/{self._phases} {self._name} {seconds:.1f} s",
            f" {words}",
            highlight=False,
            soft_wrap=True,
        )
