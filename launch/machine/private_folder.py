"""Temporary folders that no other user may enter."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_shards.settings import InputError

_SOCKET_BYTES = 107
"""The longest path of a Unix socket, on Linux."""
_BELOW = "/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest path of a socket that Ray makes within a private folder."""
RAY_BYTES = _SOCKET_BYTES - len(_BELOW)
"""The longest path of a private folder that Ray can work in."""
_MADE = len("/perennial-xxxxxxxx")


def places() -> list[Path]:
    """Folders for temporary files in order of preference, TMPDIR first if it is set."""
    named = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    named += ["/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"]
    return [Path(place).absolute() for place in dict.fromkeys(named) if place]


def make_private(longest: int | None = None) -> Path:
    """Makes a folder of mode 0700, with a path of at most `longest` bytes.

    Raises InputError if it can be made nowhere.
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
    """A folder of `make_private` that is deleted at the end of the context."""
    folder = make_private(longest)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a process that is ending may still write


def kept_private() -> Path:
    """A folder of mode 0700 that later commands of this user find again, or a new one.

    A folder of that name that another user made or may enter is not used: anybody can make one in
    /tmp.
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
