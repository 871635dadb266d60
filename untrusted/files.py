"""Opens files in folders that others write to, perhaps with bad intent."""

import os
import stat
from pathlib import Path
from typing import BinaryIO


class Refused(OSError):
    """A file that leads out of its folder, is no regular file, or exceeds its limit of bytes."""


def open_regular(path: Path, within: Path | None = None) -> BinaryIO:
    """Opens a regular file, whose real path must be below the folder `within`, if one is given.

    The real path is read from the open file: a check before opening could be passed by a link that
    is made in between. Raises OSError, of which Refused is one.
    """
    # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise Refused(f"{path.name} is no regular file")
        if within is not None:
            place = Path(f"/proc/self/fd/{file}").readlink()
            if not place.is_relative_to(within.resolve()):
                raise Refused(f"{path.name} is no file of this folder")
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def no_link(path: str, flags: int) -> int:
    """The opener for `open(path, "a", opener=no_link)`, which raises OSError if the file is a link.

    Anybody else who can write to its folder could have made the link lead anywhere.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def read_bytes(path: Path, limit: int, within: Path | None = None) -> bytes:
    """The bytes of a regular file of at most `limit`, see `open_regular`. Raises OSError."""
    with open_regular(path, within) as file:
        # not `limit + 1` alone: room for all of it would be taken at once
        content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(content) > limit:
        raise Refused(f"{path.name} is larger than {limit:,} bytes")
    return content
