"""Shows how a run gets on (live lines on a terminal, else a line a phase and every half minute) and
logs it."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from monitoring.logs import LOG
from monitoring.pace import Pace, Telling, bars, time_left
from monitoring.run_metrics import RunMetrics


def in_words(record: dict[str, Any]) -> str:
    """A record of `trainer.loop` for people."""
    words = (
        f"{record['images_per_second']:,.0f} images/s, loss {record['loss']:.3f}, "
        f"data wait {record['data_wait_share']:.0%}"
    )
    counts = (count for count in ("skipped", "rewinds", "restarts") if record.get(count))
    return ", ".join([words, *(f"{count} {record[count]}" for count in counts)])


class RunProgress(Telling):
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
        super().__init__(console, clock)
        self._metrics, self._turns = metrics, 0
        self._number, self._phases = phases
        self._run = Pace(clock(), *iterations)
        self._before, self._own = float(iterations[0]), 0.0
        self._phase = Pace(clock())
        self._name, self._doing, self._last, self._heard = "", "starting", "", False
        self._begun = clock()
        self.context: dict[str, Any] = {}
        """Where the run is, for its log."""

    def line(self) -> str:
        """The phase, what it does, and the share of the whole run that is done."""
        left = time_left(self._phase.left(self._clock()))
        parts = [self._title, self._doing, left, f"run {self._run.share:.0%}"]
        return ", ".join(filter(None, parts))

    @property
    def _title(self) -> str:
        return f"{self._number}/{self._phases} {self._name}" if self._name else ""

    def drawn(self) -> Group:
        """The phase, what it does, and the whole run."""
        rows = [(self._title or "starting", self._phase), ("the whole run", self._run)]
        doing = Text(f"  {self._doing}", no_wrap=True, overflow="ellipsis")
        return Group(bars(rows, self._clock()), doing)

    def begin(self, phase: str) -> None:
        """A phase starts."""
        self._number += 1
        self._before += self._own
        self._begun, self._name, self._last, self._own = self._clock(), phase, "", 0.0
        self._phase, self._heard = Pace(self._begun), False
        self._doing = "starting"
        self._metrics.begin(phase)
        self._tell_time_left()
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
            self._phase, self._heard = Pace(self._clock(), iteration, of), True
        self._phase.done, self._own = iteration, iteration
        self._run.done = self._before + iteration
        self._last = words
        self._doing = f"iteration {iteration:,}/{of:,}, {words}"
        self._tell_time_left()

    def notice(self, line: str) -> None:
        """Something that the user should know; the run goes on."""
        LOG.warning("%s", line)
        self.print(f"! {line}")

    def units(self, done: int, of: int, images: tuple[int, int] = (0, 0)) -> None:
        """Units of a CPU phase are done, and so many `images` of theirs, of so many."""
        now = self._clock()
        have, total = images if images[1] else (done, of)
        if not self._heard or have <= self._phase.done or self._phase.of != total:
            self._phase = Pace(self._begun if not self._heard else now, 0.0, total)
        self._phase.done, self._heard = have, True
        rate = self._phase.rate(now)
        told = f"{have:,}/{total:,} images, {rate:,.0f} images/s" if images[1] else ""
        self._doing = told or f"{done:,}/{of:,} units"
        self._last = told or self._last or self._doing  # later rounds may be of no images
        self._metrics.gets_on()
        self._tell_time_left()

    def _tell_time_left(self) -> None:
        now = self._clock()
        self._metrics.remains(self._phase.left(now), self._run.left(now))

    def end(self, result: str = "") -> None:
        """The phase is finished; `result` is worth a word."""
        self._metrics.end()
        words = ", ".join(filter(None, [result, self._last]))
        seconds = self._clock() - self._begun
        LOG.info("finished in %.1f s: %s", seconds, words or "done")
        self.context = {}
        self.print(f"✓ {self._title} {seconds:.1f} s  {words}")
