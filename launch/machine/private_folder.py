"""Folders that nobody else may enter, wherever this machine has room for one."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_shards.settings import InputError

_SOCKET_BYTES = 107
"""The longest path of a Unix socket."""
_BELOW = "/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest that a socket of Ray adds to a private folder."""
RAY_BYTES = _SOCKET_BYTES - len(_BELOW)
"""The longest path of a private folder that Ray can work in."""
_MADE = len("/perennial-xxxxxxxx")


def places() -> list[Path]:
    """Where temporary files may go, the best first: TMPDIR where it is set."""
    named = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    named += ["/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"]
    return [Path(place).absolute() for place in dict.fromkeys(named) if place]


def make_private(longest: int | None = None) -> Path:
    """Makes a folder of mode 0700, with a path of at most `longest` bytes.

    Raises InputError where no place has room for it.
    """
    refused = []
    for place in places():
        size = len(os.fsencode(place)) + _MADE
        if longest is not None and size > longest:
            refused.append(f"{place} is {size - longest} bytes too long for Ray's sockets")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="perennial-", dir=place))
        except OSError as error:
            refused.append(f"{place}: {error.strerror}")
    raise InputError(
        f"no place for temporary files ({'; '.join(refused)}): set TMPDIR to a folder with a short "
        "path that can be written"
    )


@contextmanager
def private_folder(longest: int | None = None) -> Iterator[Path]:
    """`make_private` for as long as the context lasts."""
    folder = make_private(longest)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a process that is ending may still write


def kept_private() -> Path:
    """A folder of mode 0700 that this user's later commands find again; or else a new one.

    A folder of its name that somebody else made, or may enter, is not used.
    """
    for place in places():
        folder = place / f"perennial-{os.geteuid()}"
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if ours and not stat.S_IMODE(found.st_mode) & 0o077 and os.access(folder, os.W_OK):
                return folder
    return make_private()
