"""What a run has finished: an append-only file of JSON lines."""

import json
import os
from pathlib import Path
from typing import Any

from data_shards.settings import InputError


class Ledger:
    """The finished phases of a run. A phase is recorded only when its outputs are complete."""

    def __init__(self, path: Path) -> None:
        """Reads the ledger; a last line cut short by a crash is dropped.

        Raises InputError when any other line is damaged.
        """
        self.path = path
        self.records: list[dict[str, Any]] = []
        newest = 0
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                if not line.endswith("\n"):
                    raise ValueError("cut short")
                record = json.loads(line)
            except ValueError as error:
                if number == len(lines):
                    whole = sum(len(previous.encode()) for previous in lines[:-1])
                    os.truncate(path, whole)
                    break
                raise InputError(
                    f"line {number} of {path} is damaged: remove that line to repeat its phase"
                ) from error
            if record.get("attempt", newest) < newest:
                continue  # of one that had been superseded, and was frozen while it wrote
            newest = record.get("attempt", newest)
            self.records.append(record)

    def has(self, name: str, fingerprint: str) -> bool:
        """Whether the phase was finished under this very definition."""
        return any(r["phase"] == name and r["fingerprint"] == fingerprint for r in self.records)

    def twin(self, fingerprint: str) -> dict[str, Any] | None:
        """A finished phase of another name with the same definition, so with the same result."""
        return next((r for r in self.records if r["fingerprint"] == fingerprint), None)

    def add(self, record: dict[str, Any]) -> None:
        """Records a finished phase durably."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records.append(record)
