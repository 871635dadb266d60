"""CPU seconds, user and system, of commands that people wait for: medians of new processes."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report

ASKED = {
    "--help": 0.5,
    "config": 0.5,
    "status RUN": 1.0,
    "run no_such_file.yaml": 0.5,
}
"""Commands and how much of a CPU they may take, seconds."""


def cpu_seconds(words: list[str]) -> float:
    """Of one process, to its end."""
    with subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three times each, not eleven")
    parser.add_argument("--run", type=Path, help="a run folder, for status")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for command, asked in ASKED.items():
        if "RUN" in command and given.run is None:
            continue
        words = command.replace("RUN", str(given.run)).split()
        times = [cpu_seconds(words) for _ in range(3 if given.quick else 11)]
        rows.append({"what": command, "is": float(np.median(times)), "asked": asked})
    report("commands", rows, {row["what"]: row["is"] for row in rows})


if __name__ == "__main__":
    main()
