"""Progress of commands: a bar on a terminal, otherwise a line every half minute, as of phases."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.text import Text

from monitoring.pace import Pace, Telling, bars, time_left
from untrusted.text import printable


class Progress(Telling):
    """Of one thing that consists of `total` units, where that is known."""

    def __init__(
        self,
        console: Console,
        what: str,
        total: int | None,
        unit: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, clock)
        self._what, self._total, self._unit = printable(what), total, unit
        self._pace, self._heard = Pace(clock(), 0, total or 0), False

    def hear(self, done: int) -> None:
        """So many units are done, with those of an earlier call, which the first time tells."""
        if not self._heard:  # what an earlier call did has no rate
            self._pace, self._heard = Pace(self._clock(), done, self._total or 0), True
        self._pace.done = done

    def _told(self) -> str:
        of = f"/{self._total:,}" if self._total else ""
        digits = 0 if self._unit == "images" else 2
        rate = self._pace.rate(self._clock())
        return f"{self._pace.done:,.0f}{of} {self._unit}, {rate:,.{digits}f} {self._unit}/s"

    def drawn(self) -> Group:
        rows = [(self._what, self._pace)]
        told = Text(f"  {self._told()}", no_wrap=True, overflow="ellipsis")
        return Group(bars(rows, self._clock()), told)

    def line(self) -> str:
        left = time_left(self._pace.left(self._clock()))
        return ", ".join(filter(None, [f"{self._what}: {self._told()}", left]))


@contextmanager
def progress(
    console: Console, what: str, total: int | None, unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """Shows the progress of `what`; yields a function to call with the number of items done."""
    with Progress(console, what, total, unit) as shown:
        yield shown.hear
