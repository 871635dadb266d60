"""How far something is, drawn on a terminal, or else told in a line every half minute."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

_PLAIN_SECONDS = 30.0
"""Where there is no terminal, no longer silence."""


def time_left(seconds: float | None) -> str:
    """How long something will take, in words of at most ten characters; nothing if not known."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:,.0f} min left" if seconds < 5400 else f"{seconds / 3600:,.1f} h left"


class Pace:
    """What is done of something, and how long the rest takes at the rate since it was begun."""

    def __init__(self, now: float, done: float = 0.0, of: float = 0.0) -> None:
        """`of` is 0 where nobody knows how much there is to do."""
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


def bars(rows: Sequence[tuple[str, Pace]], now: float) -> Table:
    """A line each with its share and the time left. Names give way, shares and times do not."""
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for width in (16, 4, 13):
        table.add_column(width=width, no_wrap=True, justify="right")
    for title, pace in rows:
        bar = ProgressBar(total=1.0, completed=pace.share, width=16)
        share = f"{pace.share:.0%}" if pace.of else ""
        table.add_row(title, bar, share, time_left(pace.left(now)))
    return table


class Telling(ABC):
    """Tells people how something gets on while it is entered."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._printed = clock()
        self._ended = threading.Event()
        self._live: Live | None = None

    @abstractmethod
    def drawn(self) -> RenderableType:
        """What a terminal shows."""

    @abstractmethod
    def line(self) -> str:
        """The same where there is none."""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self.drawn,
                refresh_per_second=4,
                transient=True,
            )
            self._live.start()
        else:
            threading.Thread(target=self._keep_telling, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._live is not None:
            self._live.stop()

    def _keep_telling(self) -> None:
        while not self._ended.wait(1.0):
            self.tick()

    def tick(self) -> None:
        """Prints a line where nothing was printed for half a minute; not for terminals."""
        if not self._console.is_terminal and self._clock() - self._printed >= _PLAIN_SECONDS:
            self.print(self.line())

    def print(self, line: str) -> None:
        """Prints a line that stays."""
        self._printed = self._clock()
        self._console.print(line, highlight=False, soft_wrap=True)
