"""What a rank is doing, for whoever watches it from another thread."""

import threading
import time
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


class Pulse:
    """The trainer tells it what it turns to; others read that, and may ask for a stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        """Set by anybody: finish the iteration, save a checkpoint, return."""
        self._now = ("starting", 0, time.monotonic())

    def turn(self, what: str) -> None:
        """The rank turns to something else."""
        self._now = (what, self._now[1] + 1, time.monotonic())

    def read(self) -> Doing:
        """What the rank is doing."""
        what, turns, since = self._now
        return Doing(what, turns, time.monotonic() - since)
