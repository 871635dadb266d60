"""Ray's token, which must be this user's alone."""

import os
import secrets
import stat
from pathlib import Path

from data_shards.settings import InputError

_TOKEN = "RAY_AUTH_TOKEN"


def own_token() -> None:
    """Sets a token for a cluster of this process's own, in its environment.

    Not in a file: Ray would write one of mode 0644, which every user of the machine can read.
    """
    os.environ.setdefault(_TOKEN, secrets.token_hex(32))


def check_token() -> None:
    """Raises InputError if other users can read the file that Ray takes its token from."""
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
