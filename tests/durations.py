"""What each test file costs: wall and CPU seconds, those of every process that it starts included.

``python -m tests.durations [FILE...]`` runs the files one after the other, each in a pytest of its
own, and prints a line for each as it ends. Wall seconds depend on who else uses the machine; CPU
seconds hardly do.
"""

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent
PR_SET_CHILD_SUBREAPER = 36


def cpu_seconds() -> float:
    """User and system seconds of all children that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(file: str) -> tuple[int, float, float]:
    """Exit status of pytest on `file`, wall seconds, CPU seconds."""
    wall, cpu = time.monotonic(), cpu_seconds()
    tests = subprocess.Popen([sys.executable, "-m", "pytest", file], stdout=sys.stderr).pid
    status = None
    # what outlives its parent (a killed driver's Ray) is ours, and a zombie until we wait for it
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, how = os.waitpid(-1, 0)
            if ended == tests:
                status, wall = os.waitstatus_to_exitcode(how), time.monotonic() - wall
    assert status is not None
    return status, wall, cpu_seconds() - cpu


def main() -> None:
    """Prints the table; the exit status is 1 where a file failed."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    files = sys.argv[1:] or sorted(str(path) for path in TESTS.rglob("test_*.py"))
    failed = False
    print("| file | wall | CPU |\n| --- | ---: | ---: |", flush=True)
    for file in files:
        status, wall, cpu = measure(file)
        failed |= status not in {0, 5}
        told = "" if status == 0 else f" (exit status {status})"
        print(f"| {file}{told} | {wall:.0f} | {cpu:.0f} |", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
