"""A run that is killed at every write boundary of some kinds of phases, or at every so many-th.

``python -m tests.chaos.phase_kills CONFIG OUT EVERY KIND...`` forks a driver for n = 1, 1 + EVERY,
...: each goes on from what the one before left, and dies by SIGKILL at the n-th boundary within a
phase of such a kind. Ends when a driver lives through the rest of the run, and prints at which
boundaries the others died.
"""

import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from launch.config.load import load_config
from launch.phases.registry import KINDS
from tests.alone import execute_alone
from tests.ranks import import_all
from trainer.engine import prepare_deepspeed

BOUNDARIES = ("mkdir", "open", "fsync", "rename", "replace", "unlink", "rmdir")


def kill_at(n: int, kinds: list[str]) -> None:
    """Arms this process: SIGKILL at the n-th boundary within a phase of these `kinds`."""
    seen, inside = 0, ""

    def boundary(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += bool(inside)
            if inside and seen == n:
                os.write(1, f"{inside} {name}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    def watched(work: Callable[..., str]) -> Callable[..., str]:
        def within(self: Any, *args: Any) -> str:
            nonlocal inside
            inside = self.name
            try:
                return work(self, *args)
            finally:
                inside = ""

        return within

    for kind in (type(kind) for kind in KINDS if kind.name in kinds):
        kind.work = watched(kind.work)  # type: ignore[method-assign]
    for name in BOUNDARIES:
        setattr(os, name, boundary(name, getattr(os, name)))


def main(config: Path, out: Path, every: int, kinds: list[str]) -> None:
    """Kills them all but the last."""
    prepare_deepspeed()  # once for all of them, and without starting a thread
    import_all()
    for n in count(1, every):
        child = os.fork()
        if child == 0:
            try:
                kill_at(n, kinds)
                execute_alone(load_config(config), out)
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended == 0:
            return
        if ended != -signal.SIGKILL:
            raise SystemExit(f"the driver of boundary {n} ended with {ended}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
