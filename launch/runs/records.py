"""Records that a run appends to files of its folder."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

from monitoring.progress import RunProgress
from monitoring.run_folder import EVENTS_FILE, METRICS_FILE
from untrusted.files import no_link
from untrusted.text import redacted

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def append(folder: Path, file: str, record: dict[str, Any]) -> None:
    """Adds a line with the time to ``metrics.jsonl`` or ``events.jsonl``: all of it, or nothing.

    Raises OSError.
    """
    line = (redacted(json.dumps({"time": time.time(), **record})) + "\n").encode()
    with open(folder / file, "ab", buffering=0, opener=no_link) as out:
        before = os.fstat(out.fileno()).st_size
        if out.write(line) != len(line):  # there was room for some of it
            out.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / file))


class Records:
    """What workers say, shown and kept. Lines that a full disk refuses are written once it can."""

    def __init__(self, folder: Path, progress: RunProgress) -> None:
        self._folder, self._progress = folder, progress
        self._waiting: list[tuple[str, dict[str, Any]]] = []

    def keep(self, record: dict[str, Any]) -> None:
        """Shows and keeps a ``notice``, an ``event``, or a record of training. Raises OSError."""
        if "notice" in record:
            record = {"event": "notice", "message": record["notice"]}
        record = {"time": time.time(), **record}
        if "event" in record:
            if "message" in record:
                self._progress.notice(record["message"])
            self._waiting.append((EVENTS_FILE, record))
        else:
            self._progress.training(record)
            self._waiting.append((METRICS_FILE, record))
        try:
            while self._waiting:
                append(self._folder, *self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
