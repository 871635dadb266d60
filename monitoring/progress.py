"""Shows how a run gets on (live lines on a terminal, else a line a phase and every half minute) and
logs it."""

import threading
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from monitoring.logs import LOG
from monitoring.run_metrics import RunMetrics

_PLAIN_SECONDS = 30.0
"""Where there is no terminal, no longer silence."""


def in_words(record: dict[str, Any]) -> str:
    """A record of `trainer.loop` for people."""
    words = (
        f"{record['images_per_second']:,.0f} images/s, loss {record['loss']:.3f}, "
        f"data wait {record['data_wait_share']:.0%}"
    )
    counts = (count for count in ("skipped", "rewinds", "restarts") if record.get(count))
    return ", ".join([words, *(f"{count} {record[count]}" for count in counts)])


def time_left(seconds: float | None) -> str:
    """How long something will take, in words of at most ten characters; nothing if not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:,.0f} min left" if seconds < 5400 else f"{seconds / 3600:,.1f} h left"


class _Pace:
    """What is done of something, and how long the rest takes at the rate since it was begun."""

    def __init__(self, now: float, done: float = 0.0, of: float = 0.0) -> None:
        self._since, self._from = now, done
        self.done, self.of = done, of

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.of) if self.of else 0.0

    def rate(self, now: float) -> float:
        """Done in a second; 0 while nothing is."""
        return (self.done - self._from) / max(now - self._since, 1e-9)

    def left(self, now: float) -> float | None:
        """Seconds, if that can be known."""
        rate = self.rate(now)
        return (self.of - self.done) / rate if rate > 0 and self.of else None


class RunProgress:
    """The driver tells it of phases and of workers' records; it draws."""

    def __init__(
        self,
        console: Console,
        metrics: RunMetrics,
        *,
        phases: tuple[int, int],
        iterations: tuple[int, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`phases` and `iterations` that were done before, and those of the whole run; `metrics`
        hears all of it."""
        self._console, self._metrics, self._clock, self._turns = console, metrics, clock, 0
        self._number, self._phases = phases
        self._run = _Pace(clock(), *iterations)
        self._before, self._own = float(iterations[0]), 0.0
        self._phase = _Pace(clock())
        self._name, self._doing, self._last, self._heard = "", "starting", "", False
        self._begun = self._printed = clock()
        self._ended = threading.Event()
        self._live = Live(
            console=console, get_renderable=self.drawn, refresh_per_second=4, transient=True
        )
        self.context: dict[str, Any] = {}
        """Where the run is, for its log."""

    def __enter__(self) -> "RunProgress":
        if self._console.is_terminal:
            self._live.start()
        else:
            threading.Thread(target=self._keep_telling, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._live.stop()

    def _keep_telling(self) -> None:
        while not self._ended.wait(1.0):
            self.tick()

    def tick(self) -> None:
        """Prints a line where nothing was printed for half a minute; not for terminals."""
        if not self._console.is_terminal and self._clock() - self._printed >= _PLAIN_SECONDS:
            left = time_left(self._phase.left(self._clock()))
            parts = [self._title, self._doing, left, f"run {self._run.share:.0%}"]
            self._print(", ".join(filter(None, parts)))

    def _print(self, line: str) -> None:
        self._printed = self._clock()
        self._console.print(line, highlight=False, soft_wrap=True)

    @property
    def _title(self) -> str:
        return f"{self._number}/{self._phases} {self._name}" if self._name else ""

    def drawn(self) -> Group:
        """The phase, what it does, and the whole run. Names give way, shares and times do not."""
        now = self._clock()
        table = Table.grid(expand=True, padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for width in (16, 4, 13):
            table.add_column(width=width, no_wrap=True, justify="right")
        rows = [(self._title or "starting", self._phase), ("the whole run", self._run)]
        for title, pace in rows:
            bar = ProgressBar(total=1.0, completed=pace.share, width=16)
            table.add_row(title, bar, f"{pace.share:.0%}", time_left(pace.left(now)))
        return Group(table, Text(f"  {self._doing}", no_wrap=True, overflow="ellipsis"))

    def begin(self, phase: str) -> None:
        """A phase starts."""
        self._number += 1
        self._before += self._own
        self._begun, self._name, self._last, self._own = self._clock(), phase, "", 0.0
        self._phase, self._heard = _Pace(self._begun), False
        self._doing = "starting"
        self._metrics.begin(phase)
        self.context = {"phase": phase}
        LOG.info("begins")

    def doing(self, what: str) -> None:
        """What is waited for, until a record or a unit tells more."""
        if not self._heard:
            self._doing = what

    def ranks(self, expected: int, heard: int, turns: int, doing: str = "") -> None:
        """How many ranks there should be and are, how much they have done together, and what the
        slowest is `doing`."""
        self._metrics.ranks(expected, heard)
        if doing:
            self.doing(doing)
        if turns != self._turns:
            self._turns = turns
            self._metrics.gets_on()

    def training(self, record: dict[str, Any]) -> None:
        """A worker's record of `trainer.loop`."""
        iteration, of, words = record["iteration"], record["of"], in_words(record)
        if not self._heard:  # what an earlier attempt did has no rate
            self._phase, self._heard = _Pace(self._clock(), iteration, of), True
        self._phase.done, self._own = iteration, iteration
        self._run.done = self._before + iteration
        self._last = words
        self._doing = f"iteration {iteration:,}/{of:,}, {words}"

    def notice(self, line: str) -> None:
        """Something that the user should know; the run goes on."""
        LOG.warning("%s", line)
        self._print(f"! {line}")

    def units(self, done: int, of: int, images: tuple[int, int] = (0, 0)) -> None:
        """Units of a CPU phase are done, and so many `images` of theirs, of so many."""
        now = self._clock()
        have, total = images if images[1] else (done, of)
        if not self._heard or have <= self._phase.done or self._phase.of != total:
            self._phase = _Pace(self._begun if not self._heard else now, 0.0, total)
        self._phase.done, self._heard = have, True
        rate = self._phase.rate(now)
        told = f"{have:,}/{total:,} images, {rate:,.0f} images/s" if images[1] else ""
        self._last = told or f"{done:,}/{of:,} units"
        self._doing = self._last
        self._metrics.gets_on()

    def end(self, result: str = "") -> None:
        """The phase is finished; `result` is worth a word."""
        self._metrics.end()
        words = ", ".join(filter(None, [result, self._last]))
        seconds = self._clock() - self._begun
        LOG.info("finished in %.1f s: %s", seconds, words or "done")
        self.context = {}
        self._print(f"✓ {self._title} {seconds:.1f} s  {words}")
