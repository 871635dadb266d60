"""What must be this user's alone: Ray's token, and the folder of its sockets and logs."""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_shards.settings import InputError

_TOKEN = "RAY_AUTH_TOKEN"
_SOCKET_BYTES = 107
"""Linux takes no longer path of a socket."""
_SOCKET = "perennial-xxxxxxxx/r/session_2026-01-31_09-00-00_000000_4194304/sockets/plasma_store"


def own_token() -> None:
    """Gives this process, and what it starts, a token for a cluster of its own.

    It is in no file: Ray would write one that everybody on the machine can read.
    """
    os.environ.setdefault(_TOKEN, secrets.token_hex(32))


def check_token() -> None:
    """Raises InputError where others can read the file that Ray takes its token from."""
    if os.environ.get(_TOKEN):
        return
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        path = Path(given) if given else Path.home() / ".ray" / "auth_token"
        found = path.stat()
    except (OSError, RuntimeError):
        return  # there is none: Ray says so
    if found.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(found.st_mode) & 0o077:
        raise InputError(
            f"{path} holds Ray's token and is not yours alone: chmod 600 {path}, and take a new "
            "token if others use this machine"
        )


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder that no other user can look into, with room for the paths of Ray's sockets.

    It is deleted at the end, with Ray's own logs. Raises InputError where there is no such place.
    """
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/dev/shm")]
    fitting = [p for p in places if len(os.fsencode(p / _SOCKET)) <= _SOCKET_BYTES]
    for place in fitting:
        try:
            folder = Path(tempfile.mkdtemp(prefix="perennial-", dir=place))
        except OSError:
            continue
        try:
            yield folder / "r"  # Ray lets everybody into the one that it is given
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    raise InputError("no folder for temporary files can be written: set TMPDIR to one")
