"""What each test file costs: wall and CPU seconds, those of every process that it starts included.

``python -m tests.durations [FILE...]`` runs the files one after the other, each in a pytest of its
own, and prints a line for each as it ends. Wall seconds depend on who else uses the machine; CPU
seconds hardly do. They are looked up while a process runs, four times a second: Ray's raylet
ignores how its workers end, and what they used is then in nobody's account.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

TESTS = Path(__file__).parent
PR_SET_CHILD_SUBREAPER = 36
SECONDS = 0.25


class Looked:
    """User and system seconds of all descendants of this process, as far as they were seen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def _look_on(self) -> None:
        while not self._over.wait(SECONDS):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    used = process.cpu_times()
                    self._seen[process.pid, process.create_time()] = used.user + used.system

    def end(self) -> float:
        """Stops looking; returns the sum."""
        self._over.set()
        self._thread.join()
        return sum(self._seen.values())


def measure(file: str) -> tuple[int, float, float]:
    """Exit status of pytest on `file`, wall seconds, CPU seconds."""
    wall, looked = time.monotonic(), Looked()
    tests = subprocess.Popen([sys.executable, "-m", "pytest", file], stdout=sys.stderr).pid
    status = None
    # what outlives its parent (a killed driver's Ray) is ours, and a zombie until we wait for it
    with contextlib.suppress(ChildProcessError):
        while True:
            ended, how = os.waitpid(-1, 0)
            if ended == tests:
                status, wall = os.waitstatus_to_exitcode(how), time.monotonic() - wall
    assert status is not None
    return status, wall, looked.end()


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
