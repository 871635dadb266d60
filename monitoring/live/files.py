"""Reading a folder that others write to, and may have written with bad intent."""

import os
from pathlib import Path
from typing import Any

from untrusted.files import open_regular
from untrusted.json_text import parse_json

Stamp = tuple[int, int, int]


def stamp(path: Path) -> Stamp | None:
    """What changes when a file does; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a JSON line; None where it is none."""
    try:
        record = parse_json(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def last_record(root: Path, path: Path, block: int = 1 << 16) -> dict[str, Any] | None:
    """The newest whole record of a JSON lines file, from its last `block` bytes alone."""
    try:
        with open_regular(path, root) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - block))
            whole, end, _ = file.read(block).rpartition(b"\n")
    except OSError:
        return None
    found = (parsed(line) for line in reversed(whole.split(b"\n"))) if end else iter(())
    return next((record for record in found if record is not None), None)


class Records:
    """The records of a growing JSON lines file, each of them once.

    A last line without its end is left for later; lines that hold no object are counted in
    `damaged` and passed over.
    """

    def __init__(self, root: Path, path: Path) -> None:
        self._root, self._path, self._inode, self._offset = root, path, 0, 0
        self.damaged, self.behind = 0, 0

    def read(self, limit: int = 1 << 21) -> tuple[list[dict[str, Any]], bool]:
        """Those that came since, from at most `limit` bytes; `behind` says how many are left.

        Whether the file shrank or was replaced comes with them: then it is read from its start.
        """
        try:
            with open_regular(self._path, self._root) as file:
                found = os.fstat(file.fileno())
                anew = found.st_ino != self._inode or found.st_size < self._offset
                if anew:
                    self._inode, self._offset, self.damaged = found.st_ino, 0, 0
                file.seek(self._offset)
                content = file.read(limit)
        except OSError:
            return [], False
        whole, end, _ = content.rpartition(b"\n")
        if not end and len(content) == limit:  # a line longer than that is nobody's record
            self.damaged += 1
            end = content
        self._offset += len(whole) + len(end)
        self.behind = max(0, found.st_size - self._offset) if len(content) == limit else 0
        lines = [line for line in whole.split(b"\n") if line.strip()]
        records = [record for line in lines if (record := parsed(line)) is not None]
        self.damaged += len(lines) - len(records)
        return records, anew
