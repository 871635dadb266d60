"""Workers say what they do, once a second; the driver finds out who holds the others up."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil

from trainer.activity import Activity, Doing

_SECONDS = 1.0


@dataclass(frozen=True)
class Beat:
    """A worker's sign of life."""

    phase: str
    """Empty between two jobs."""
    rank: int
    node: str
    """Ray's id of its machine."""
    pid: int
    born: float
    """When its process started: tells it from a later one with the same pid."""
    doing: Doing
    silent: float = 0.0
    """Seconds since it was received, when it is read."""


class Heartbeat:
    """A thread beside a rank's jobs that sends beats; a context manager."""

    def __init__(
        self, mailbox: Any, rank: int, superseded: Callable[[], bool] = lambda: False
    ) -> None:
        """`superseded` is asked once a second whether another attempt has taken the run over."""
        import ray  # the driver sets the environment that it reads when it is imported

        self._mailbox, self._rank, self._superseded = mailbox, rank, superseded
        self._at = _between_jobs()
        self._node = ray.get_runtime_context().get_node_id()
        self._born = psutil.Process().create_time()
        self._ended, self._hurry = False, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._hurry.set()
        self._thread.join()
        self._mailbox.leave.remote(self._beat())

    @contextmanager
    def during(self, phase: str, activity: Activity) -> Iterator[None]:
        """For as long as a job is done: beats tell of it, and it is asked to stop through them.

        On return all that the rank has posted meanwhile has come.
        """
        import ray

        self._at = phase, activity
        self._hurry.set()
        yield
        self._at = _between_jobs()
        ray.get(self._mailbox.beat.remote(self._beat()))  # calls of one process come in order

    def _beat(self) -> Beat:
        phase, activity = self._at
        return Beat(
            phase,
            rank=self._rank,
            node=self._node,
            pid=os.getpid(),
            born=self._born,
            doing=activity.read(),
        )

    def _run(self) -> None:
        import ray

        while not self._ended:
            _, activity = self._at
            try:
                if ray.get(self._mailbox.beat.remote(self._beat())) or self._superseded():
                    activity.stop.set()
            except Exception:  # Ray's own while it shuts down are of many kinds
                return  # the driver is gone, and Ray ends this worker, too
            self._hurry.wait(_SECONDS)
            self._hurry.clear()


def _between_jobs() -> tuple[str, Activity]:
    activity = Activity()
    activity.turn("waiting for a job")
    return "", activity


class Standing:
    """How long something of this process stands still, for a thread that looks again and again.

    Between two looks no more than `MOST` seconds count: a process that was itself stopped (Ctrl-Z,
    a frozen machine) has not stood still at its work.
    """

    MOST = 5.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._looked = clock, clock()
        self._turns, self._seconds = -1, 0.0

    def look(self, doing: Doing) -> Doing:
        """The same, at it for as long as it was looked at."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, self.MOST), now
        self._seconds = self._seconds + passed if doing.turns == self._turns else 0.0
        self._turns = doing.turns
        return replace(doing, seconds=min(doing.seconds, self._seconds))


def diagnose(
    beats: Sequence[Beat], silent_seconds: float, stalled_seconds: float
) -> tuple[list[Beat], str]:
    """Who holds the group up, and the words for it; nobody while all is well.

    That is whoever is not heard of; or else, when some have been doing one thing for too long,
    those who got least far: the others wait for them. Who waits for a job does not stall.
    """
    silent = [beat for beat in beats if beat.silent > silent_seconds]
    busy = [beat for beat in beats if beat.phase]
    least = min((beat.doing.turns for beat in busy), default=0)
    stalled = [b for b in busy if b.doing.turns == least and b.doing.seconds > stalled_seconds]
    guilty = silent or stalled
    if not guilty:
        return [], ""
    first = guilty[0]
    if silent:
        amid = f" in {first.phase}" if first.phase else ""
        sign = f"silent for {first.silent:.0f} s{amid} while '{first.doing.what}'"
    else:
        sign = f"at '{first.doing.what}' in {first.phase} for {first.doing.seconds:.0f} s"
    waiting = [beat for beat in beats if beat not in guilty]
    waits = f"; rank {waiting[0].rank} is at '{waiting[0].doing.what}'" if waiting else ""
    return guilty, f"{_ranks(guilty)} been {sign}{waits}"


def _ranks(beats: Sequence[Beat]) -> str:
    numbers = ", ".join(str(beat.rank) for beat in sorted(beats, key=lambda beat: beat.rank))
    return f"rank {numbers} has" if len(beats) == 1 else f"ranks {numbers} have"


def end_process(pid: int, born: float) -> bool:
    """Kills a process of this machine, frozen or not; False when it is gone already."""
    try:
        if psutil.Process(pid).create_time() != born:
            return False
        os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True
