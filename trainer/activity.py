"""What a rank is doing, for whoever watches it from another thread."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Doing:
    """What one rank is doing at a moment."""

    what: str
    """Such as ``reading input``."""
    turns: int
    """How often it has turned to something else: equal work, equal turns on every rank."""
    seconds: float
    """For how long already."""


class Activity:
    """The trainer tells it what it turns to; others read that, and may ask for a stop."""

    def __init__(self, count: Callable[[str, float], None] = lambda what, seconds: None) -> None:
        """`count` hears what was done, and for how many seconds, whenever something else begins."""
        self._count = count
        self.stop = threading.Event()
        """Set by anybody: finish the iteration, save a checkpoint, return."""
        self._now = ("starting", 0, time.monotonic())

    def turn(self, what: str) -> None:
        """The rank turns to something else."""
        before, turns, since = self._now
        now = time.monotonic()
        self._now = (what, turns + 1, now)
        self._count(before, now - since)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """The rank is in a collective, within whatever it was at: that time is not its own work."""
        amid, _, _ = self._now
        self.turn("exchanging")
        yield
        self.turn(amid)

    def read(self) -> Doing:
        """What the rank is doing."""
        what, turns, since = self._now
        return Doing(what, turns, time.monotonic() - since)
