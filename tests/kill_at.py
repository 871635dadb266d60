"""A run in a process of its own that kills itself at a stated moment.

The process is a fork of the one that `tests.ranks` forks ranks from: a start costs no imports.
"""

import os
import signal
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from launch.config.load import load_config
from tests.alone import execute_alone
from tests.ranks import CONTEXT

Counts = Callable[[Path, tuple[Any, ...], Mapping[str, Any]], bool]
"""Whether a call counts, from the run's folder and what the call was given."""


def _run(config: Path, out: Path, place: tuple[str, str], number: int, counts: Counts) -> None:
    module, name = import_module(place[0]), place[1]
    act, calls = getattr(module, name), 0

    def watched(*given: Any, **others: Any) -> Any:
        nonlocal calls
        done = act(*given, **others)
        calls += counts(out, given, others)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(module, name, watched)
    with (out.parent / f"{out.name}.said").open("ab") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    execute_alone(load_config(config), out)


def killed_at(config: Path, out: Path, module: str, name: str, number: int, counts: Counts) -> None:
    """Runs `config` into `out` until the `number`-th call that counts of a module's function is
    over. Fails where the run ends otherwise."""
    process = CONTEXT.Process(target=_run, args=(config, out, (module, name), number, counts))
    process.start()
    process.join()
    said = (out.parent / f"{out.name}.said").read_text()[-2000:]
    assert process.exitcode == -signal.SIGKILL, (name, number, said)
