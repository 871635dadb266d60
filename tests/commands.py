"""`perennial` as its users call it, without the seconds that each start spends on imports.

A command is a fork of the process that `tests.ranks` forks ranks from, which has imported torch and
what is slow besides; everything of `launch` the command imports itself. For commands that start
Ray or are killed, and where imports are what is tested, start a process of its own.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.ranks import CONTEXT


def _command(words: list[str], told: list[Path], environment: dict[str, str], cwd: Path) -> None:
    for stream, path in zip((sys.stdout, sys.stderr), told, strict=True):
        stream.flush()
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["perennial", *words]
    from launch.cli import main

    main()


def perennial(
    *words: object, env: Mapping[str, str] = os.environ, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; what it printed is UTF-8."""
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder) / name for name in ("out", "err")]
        given = ([str(word) for word in words], told, dict(env), cwd or Path.cwd())
        process = CONTEXT.Process(target=_command, args=given)
        process.start()
        process.join()
        out, err = (path.read_bytes().decode() for path in told)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(["perennial", *given[0]], process.exitcode, out, err)
