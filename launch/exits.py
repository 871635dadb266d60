"""How a run ends that neither finished nor failed, and the exit statuses that say so."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PREEMPTED = 75
"""Of a run that saved its state and ended because of SIGTERM: ``EX_TEMPFAIL`` of sysexits.h."""
WITHHELD = 3
"""Of a run whose gate kept a model from being published, and of a comparison in which the criterion
does not hold."""


class Preempted(Exception):
    """The run was asked to end and has; the same command goes on."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"ended by SIGTERM in {phase}: the same command goes on from there")


class Withheld(Exception):
    """The run is finished, but not every model may be published: a line for each."""

    def __init__(self, why: list[str]) -> None:
        super().__init__("\n".join(why))


@contextmanager
def sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process. For the main thread.

    Clusters send it before they take a machine away.
    """
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
