"""A polite end: SIGTERM, which clusters send before they take a machine away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 75
"""Of a run that saved its state and ended because of SIGTERM: ``EX_TEMPFAIL`` of sysexits.h."""


class Preempted(Exception):
    """The run was asked to end and has; the same command goes on."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"ended by SIGTERM in {phase}: the same command goes on from there")


@contextmanager
def sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process. For the main thread."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
