"""Ranks that nothing above them watches end where one of them is not heard of any more.

A host that loses power tells nobody: the others would wait in a collective for as long as that
may take. Each rank beats through torch's store, which torchrun serves; rank 0 listens to all, the
others to rank 0 and to what it says of them. A rank that ends is torchrun's to start again.
"""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

_SECONDS = 1.0
_OVER = "over"


def end(why: str) -> NoReturn:
    """Ends this process at once, whatever it waits for."""
    print(f"error: {why}", file=sys.stderr, flush=True)
    os._exit(1)


def watching(rank: int, world: int, silent_seconds: float) -> AbstractContextManager[object]:
    """A watch by a connection of its own to the store that torchrun gives the ranks of this start;
    of a single rank none."""
    if world == 1:
        return nullcontext()
    place, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(place, port, timeout=timedelta(seconds=silent_seconds))
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = dist.PrefixStore(f"perennial/{start}", store)
    return RanksWatch(own, rank, world, silent_seconds)


class RanksWatch:
    """Two threads beside a rank's work: one beats and listens, one judges; a context manager.

    Time is counted in looks, one a second: a process that was itself stopped for an hour has not
    looked for an hour, and blames nobody.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        world: int,
        silent_seconds: float,
        end: Callable[[str], object] = end,
    ) -> None:
        """`end` is told why, once a rank or the store has been silent for so many seconds."""
        self._store, self._rank, self._limit, self._end = store, rank, silent_seconds, end
        self._looks = 0
        self._answered = 0
        """When the store last did."""
        others = range(1, world) if rank == 0 else range(1)
        self._heard = dict.fromkeys(others, (b"", 0))
        """The newest beat of each rank that is listened to, and when it was first read."""
        self._said, self._over = "", threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._listen, self._judge)
        ]

    def __enter__(self) -> "RanksWatch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._threads[1].join()  # the other may wait for a store that is gone

    def _listen(self) -> None:
        beat = 0
        while not self._over.wait(_SECONDS if beat else 0):
            try:
                self._round(beat := beat + 1)
            except RuntimeError:  # torch's, of a store that is gone or did not answer in time
                continue
            self._answered = self._looks

    def _round(self, beat: int) -> None:
        self._store.set(str(self._rank), str(beat))
        for other, (last, _) in self._heard.items():
            if self._store.check([str(other)]) and (now := self._store.get(str(other))) != last:
                self._heard[other] = now, self._looks
        if self._rank and self._store.check([_OVER]):
            self._said = self._store.get(_OVER).decode(errors="replace")

    def _judge(self) -> None:
        while not self._over.wait(_SECONDS):
            self._looks += 1
            if why := self._said or self._silence():
                if self._rank == 0:
                    self._tell(why)
                self._end(why)
                return

    def _silence(self) -> str:
        """Who is silent, in words; empty while all are heard."""
        if (silent := (self._looks - self._answered) * _SECONDS) > self._limit:
            return f"torchrun's store, on the first host, has not answered for {silent:.0f} s"
        since = {
            rank: (self._answered - read) * _SECONDS for rank, (_, read) in self._heard.items()
        }
        missed = [rank for rank, seconds in since.items() if seconds > self._limit]
        if not missed:
            return ""
        who = f"rank {missed[0]} has" if len(missed) == 1 else f"ranks {missed} have"
        return f"{who} not been heard of for {max(since.values()):.0f} s: is a host gone?"

    def _tell(self, why: str) -> None:
        """Tells the others, if the store is there to tell them by."""
        telling = threading.Thread(target=self._store.set, args=(_OVER, why), daemon=True)
        telling.start()
        telling.join(_SECONDS)
