"""Records that a run appends to files of its folder."""

import json
import time
from pathlib import Path
from typing import Any


def append(folder: Path, file: str, record: dict[str, Any]) -> None:
    """Adds a line with the time to ``metrics.jsonl`` or ``events.jsonl``."""
    with (folder / file).open("a") as out:
        out.write(json.dumps({"time": time.time(), **record}) + "\n")
