"""A training that is killed at every write boundary of a checkpoint, one after the other.

``python -m tests.chaos.kills DATASET OUT`` forks a trainer for n = 1, 2, ...: each goes on from
what the one before left, and dies by SIGKILL at the n-th boundary of the first checkpoint that it
saves; inside a write, half of it has happened. Ends when a checkpoint has no n-th boundary, and
prints a line of JSON about each.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monitoring.metrics import Metrics
from tests.ranks import import_all
from tests.trainer.loops import train_step
from trainer.checkpoint import Checkpoints, DamagedError, Folder
from trainer.engine import prepare_deepspeed

ITERATIONS = 40
SETTINGS = {"log_every": 1, "checkpoint_every": 1}
BOUNDARIES = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")
NO_SUCH_BOUNDARY = 77


def newest(out: Path) -> int:
    """The newest checkpoint that is whole."""
    good = []
    for folder in (out / "0" / "checkpoints").glob("[0-9]*"):
        try:
            Folder.at(folder).verify()
            good.append(int(folder.name))
        except DamagedError:
            pass
    return max(good, default=0)


def kill_at(n: int, note: Callable[[str], None]) -> None:
    """Arms this process: SIGKILL at the n-th boundary of the writer's first checkpoint."""
    seen, saves = 0, 0
    save = Checkpoints.save

    def counted_save(self: Checkpoints, *args: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 2:
            self.wait()
            os._exit(NO_SUCH_BOUNDARY)
        save(self, *args)

    def boundary(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            if saves and threading.current_thread() is not threading.main_thread():
                seen += 1
                if seen == n:
                    if name == "write":
                        function(args[0], args[1][: len(args[1]) // 2])
                    at = args[0] if name not in ("write", "fsync") else _path(args[0])
                    note(f"{name} {Path(os.fsdecode(at)).name}")
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    Checkpoints.save = counted_save  # type: ignore[method-assign]
    for name in BOUNDARIES:
        setattr(os, name, boundary(name, getattr(os, name)))


def _path(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


def trainer(dataset: Path, out: Path, n: int, pipe: int) -> None:
    """One life of the trainer."""
    metrics = Metrics()
    note = os.write

    def tell(**facts: Any) -> None:
        note(pipe, (json.dumps(facts) + "\n").encode())

    kill_at(n, lambda what: tell(boundary=what, iterations=value(metrics, "iterations")))
    train_step(dataset, out, "finetune", 0, ITERATIONS, metrics=metrics, **SETTINGS)


def value(metrics: Metrics, name: str) -> float:
    """A counter's value."""
    return metrics.registry.get_sample_value(f"perennial_{name}_total") or 0.0


def main(dataset: Path, out: Path) -> None:
    """Kills them all."""
    prepare_deepspeed()  # once for all of them, and without starting a thread
    import_all()
    n, ended = 0, 0
    while ended != NO_SUCH_BOUNDARY:
        n += 1
        before = newest(out)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                trainer(dataset, out, n, write)
            finally:
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as lines:
            facts = [json.loads(line) for line in lines]
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        result = {"n": n, "ended": ended, "before": before, "after": newest(out)}
        print(json.dumps(result | (facts[0] if facts else {})), flush=True)
        if ended not in (-signal.SIGKILL, NO_SUCH_BOUNDARY):
            raise SystemExit(f"the trainer of boundary {n} ended with {ended}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
