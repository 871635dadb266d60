"""Completes this process's environment, before libraries read it: user, home, caches, threads."""

import getpass
import os
import sys
import tempfile
from pathlib import Path

from data_shards.cores import cores
from launch.machine.private_folder import kept_private

_CACHES = {
    "XDG_CACHE_HOME": (".cache", ".cache/torch_extensions", ".cache/perennial"),
    "TRITON_CACHE_DIR": (".triton/cache",),
    "MPLCONFIGDIR": (".config/matplotlib",),
}
"""Variables that name folders which libraries write to. For each the default below HOME, and
folders within it that another user may have made, such as root when an image was built."""
_SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def prepare_environment() -> None:
    """Sets variables that the user's environment lacks; prints a line if a folder is replaced.

    To be called before torch is imported, when its thread library reads the environment.
    """
    _name_the_user()
    _find_room_for_caches()
    os.environ.update(thread_variables())


def thread_variables() -> dict[str, str]:
    """Variables for how threads wait, unless the user sets it, and how many there are.

    A thread that waits by spinning takes the core from the one that it waits for: on two cores,
    several processes of two threads each are ten times slower than with one thread each.
    """
    spinning = next((name for name in _SPINNING if name in os.environ), None)
    found = {spinning: os.environ[spinning]} if spinning else {"OMP_WAIT_POLICY": "PASSIVE"}
    if cores() < len(os.sched_getaffinity(0)):  # by a container's quota, which OpenMP ignores
        found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(cores()))
    return found


def _name_the_user() -> None:
    """Sets a name and a home for a user without an entry in the machine's user database."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ |= dict.fromkeys(("USER", "LOGNAME"), f"uid-{os.getuid()}")
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(kept_private())


def _find_room_for_caches() -> None:
    """Moves caches that cannot be written to to a private folder."""
    home = Path.home()
    moved = [
        name
        for name, folders in _CACHES.items()
        if name not in os.environ and not all(_can_be_written(home / f) for f in folders)
    ]
    if not moved:
        return
    folder = kept_private()
    os.environ |= {name: str(folder / _CACHES[name][0]) for name in moved}
    where = ", ".join(str(home / _CACHES[name][0]) for name in moved)
    print(f"{where} cannot be written to: {folder} is used instead", file=sys.stderr, flush=True)


def _can_be_written(folder: Path) -> bool:
    """Whether files can be made in `folder`, or in the folder that it would be made in."""
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False
