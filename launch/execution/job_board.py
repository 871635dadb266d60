"""Hands one job after another to ranks that ask for it."""

import asyncio
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Posted:
    """A job for all ranks."""

    number: int
    """Jobs are numbered from 1."""
    content: Any
    """Ray's reference to it, so that the board itself need not import what the job does."""


class JobBoard:
    """A Ray actor: ranks ask for the `next` job and wait there, the driver until it is `finished`.

    Apart from the mailbox, because calls that wait are not answered in order.
    """

    def __init__(self, ranks: int) -> None:
        self._done = [0] * ranks
        """The last job that each rank's present process has done."""
        self._job: Posted | None = None
        self._over = False
        self._lost = 0
        self._changed = asyncio.Condition()

    async def post(self, job: Posted) -> None:
        """Gives all ranks a job. The one before must be finished."""
        async with self._changed:
            self._job, self._over = job, False
            self._changed.notify_all()

    async def end(self) -> None:
        """There is no further job: ranks that ask are told so."""
        async with self._changed:
            self._job, self._over = None, True
            self._changed.notify_all()

    async def lost(self, number: int) -> None:
        """The group that did job `number` has failed, after it: those of its processes that still
        wait here are about to be ended, and get no further job."""
        async with self._changed:
            self._lost = number

    async def next(self, rank: int, done: int) -> Posted | None:
        """The job for a rank whose process has `done` one before; waits until there is one.

        A process that has just started has done none (0), whatever the one before it did: it gets
        the job that not all have done. None: there will be no further one.
        """
        async with self._changed:
            self._done[rank] = done
            if self._job is not None and min(self._done) >= self._job.number:
                self._job = None  # whoever starts anew from now on must not do it again
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._over or self._has_after(done))
            return self._job

    def _has_after(self, done: int) -> bool:
        forsaken = 0 < done <= self._lost
        return self._job is not None and self._job.number > done and not forsaken

    async def finished(self, number: int) -> None:
        """Waits until every rank has done that job and asks for the next."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._job is None or self._job.number > number)
