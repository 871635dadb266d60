"""Records that a run appends to files of its folder."""

import json
import time
from pathlib import Path
from typing import Any

from monitoring.progress import RunProgress


def append(folder: Path, file: str, record: dict[str, Any]) -> None:
    """Adds a line with the time to ``metrics.jsonl`` or ``events.jsonl``."""
    with (folder / file).open("a") as out:
        out.write(json.dumps({"time": time.time(), **record}) + "\n")


def keep(folder: Path, progress: RunProgress, record: dict[str, Any]) -> None:
    """Shows and keeps what a worker says: a ``notice``, an ``event``, or a record of training."""
    if "notice" in record:
        record = {"event": "notice", "message": record["notice"]}
    if "event" in record:
        if "message" in record:
            progress.notice(record["message"])
        append(folder, "events.jsonl", record)
    else:
        progress.training(record)
        append(folder, "metrics.jsonl", record)
