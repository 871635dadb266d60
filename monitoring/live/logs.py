"""The newest lines of a run's logs for the live page, from the ends of its files alone."""

import os
from itertools import islice
from pathlib import Path
from typing import Any

from monitoring.live.files import parsed
from monitoring.live.values import printable as file_name
from monitoring.records import checked
from monitoring.run_folder import LOGS_FOLDER
from monitoring.schemas import LOG_LINE
from untrusted.files import open_regular
from untrusted.text import printable

_BLOCK, _LINES, _FILES, _WORDS = 1 << 16, 200, 512, 4000
"""Bytes of each file, lines altogether, files, and characters of a line, at most."""


def newest_lines(root: Path, folder: Path, process: str | None) -> dict[str, Any]:
    """The newest lines of all processes of a run, or of the one named, and the names of all.

    Lines that no run has written are passed over. What `process` names is looked up among the
    files that there are, and leads to no other.
    """
    try:
        files = sorted(islice((folder / LOGS_FOLDER).glob("*.jsonl"), _FILES))
    except OSError:
        files = []
    names = {file_name(file.stem): file for file in files}
    chosen = names if process is None else {n: f for n, f in names.items() if n == process}
    lines = [line for name, file in chosen.items() for line in _tail(root, file, name)]
    lines.sort(key=lambda line: line["time"])
    return {"processes": list(names), "lines": lines[-_LINES:]}


def _tail(root: Path, file: Path, name: str) -> list[dict[str, Any]]:
    try:
        with open_regular(file, root) as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(0, size - _BLOCK))
            whole = opened.read(_BLOCK).rpartition(b"\n")[0].split(b"\n")
    except OSError:
        return []
    found = []
    for content in whole:
        try:
            line = checked(parsed(content), LOG_LINE)
        except ValueError:
            continue
        words = f"{line['message']}\n{line.get('traceback', '')}".rstrip()[:_WORDS]
        where = [line.get("phase", "")]
        if "iteration" in line:
            where.append(f"iteration {line['iteration']:,}")
        found.append(
            {
                "time": line["time"],
                "level": printable(line["level"]),
                "process": name,
                "where": printable(", ".join(filter(None, where))[:300]),
                "message": printable(words, keep="\n\t"),
            }
        )
    return found[-_LINES:]
