"""Brings workers' records to the driver, in order, without blocking the workers."""

import time
from collections import Counter
from dataclasses import replace
from typing import Any

from launch.execution.heartbeat import Beat


class Mailbox:
    """A Ray actor: workers `post` and `beat`, the driver reads."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []
        self._starts: Counter[tuple[str, int]] = Counter()
        self._beats: dict[int, tuple[float, Beat]] = {}
        self._stopping = False

    def post(self, record: dict[str, Any]) -> None:
        """Adds a record."""
        self._records.append(record)

    def start(self, phase: str, rank: int) -> int:
        """A worker starts a phase's job; returns how often that rank had started it before."""
        self._starts[phase, rank] += 1
        return self._starts[phase, rank] - 1

    def beat(self, beat: Beat) -> bool:
        """A worker lives; returns whether it is to stop."""
        self._beats[beat.rank] = (time.monotonic(), beat)
        return self._stopping

    def leave(self, beat: Beat) -> None:
        """A worker ends of its own."""
        if beat.rank in self._beats and self._beats[beat.rank][1].pid == beat.pid:
            del self._beats[beat.rank]

    def stop(self) -> None:
        """Every worker is to stop."""
        self._stopping = True

    def read(self) -> tuple[list[dict[str, Any]], list[Beat]]:
        """Takes every record out; and each rank's newest beat, with its age."""
        records, self._records = self._records, []
        now = time.monotonic()
        return records, [replace(b, silent=now - at) for at, b in self._beats.values()]
