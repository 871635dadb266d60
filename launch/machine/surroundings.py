"""What the machine lacks, put right in this process's environment before a library looks for it."""

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
"""Variables that say where libraries write, where they do without, below HOME, and what of it
somebody else may have made, such as root when an image was built."""
_SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def prepare_environment() -> None:
    """Fills in what the user's environment leaves out; says so where a folder is replaced.

    To be called before torch is imported: its thread library reads the environment only then.
    """
    _name_the_user()
    _find_room_for_caches()
    os.environ.update(thread_variables())


def thread_variables() -> dict[str, str]:
    """How threads wait for each other, where the user does not say it, and how many there are.

    Threads that wait by spinning take the cores from whoever they wait for, beside other work.
    """
    spinning = next((name for name in _SPINNING if name in os.environ), None)
    found = {spinning: os.environ[spinning]} if spinning else {"OMP_WAIT_POLICY": "PASSIVE"}
    if cores() < len(os.sched_getaffinity(0)):  # a quota, which OpenMP does not ask for
        found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(cores()))
    return found


def _name_the_user() -> None:
    """Gives a name and a home to a user whom this machine's list does not know."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ |= dict.fromkeys(("USER", "LOGNAME"), f"uid-{os.getuid()}")
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(kept_private())


def _find_room_for_caches() -> None:
    """Moves caches to a private folder where they cannot be written to."""
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
    """Whether files can be made in `folder`, or in what it would be made in."""
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False
