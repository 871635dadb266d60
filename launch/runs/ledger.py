"""What a run has finished: an append-only file of JSON lines."""

import json
import os
import re
from pathlib import Path
from typing import Any

from data_shards.settings import InputError
from monitoring.records import checked, reason
from monitoring.schemas import LEDGER
from untrusted.files import Refused, no_link, read_bytes
from untrusted.json_text import parse_json

_BYTES = 1 << 28
_PHASE = re.compile(rb'"phase": *"([\w+./-]{1,300})"')


class Ledger:
    """The finished phases of a run. A phase is recorded only when its outputs are complete."""

    def __init__(self, path: Path, records: list[dict[str, Any]]) -> None:
        """`records` as the file at `path` has them, without what a superseded attempt wrote."""
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._finished: set[tuple[str, str]] = set()
        newest = 0
        for record in records:
            if record.get("attempt", newest) < newest:
                continue  # of one that had been superseded, and was frozen while it wrote
            newest = record.get("attempt", newest)
            self._take(record)

    def _take(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self._finished.add((record["phase"], record["fingerprint"]))

    @classmethod
    def open(cls, path: Path) -> "Ledger":
        """The ledger of a run that is this process's to go on with: a last line that a crash cut
        short is dropped.

        Raises InputError when any other line is damaged: it may have said that weeks of training
        are finished, and to leave it out would be to do them again without a word.
        """
        lines = _read(path).splitlines(keepends=True)
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError("it is cut short")
                value = parse_json(line)
            except ValueError as error:
                if number < len(lines):
                    raise _damaged(path, number, line, error) from error
                os.truncate(path, sum(map(len, lines[:-1])))
                break
            try:
                records.append(checked(value, LEDGER))
            except ValueError as error:
                raise _damaged(path, number, line, error) from error
        return cls(path, records)

    def has(self, name: str, fingerprint: str) -> bool:
        """Whether the phase was finished under this very definition."""
        return (name, fingerprint) in self._finished

    def twin(self, fingerprint: str) -> dict[str, Any] | None:
        """A finished phase of another name with the same definition, so with the same result."""
        return next((r for r in self.records if r["fingerprint"] == fingerprint), None)

    def add(self, record: dict[str, Any]) -> None:
        """Records a finished phase durably."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8", opener=no_link) as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(record)


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, _BYTES)
    except FileNotFoundError:
        return b""
    except Refused as error:
        raise InputError(f"{path} is no ledger of a run ({error}): restore it") from error


def _damaged(path: Path, number: int, line: bytes, error: ValueError) -> InputError:
    named = _PHASE.search(line)
    of = f"it was of {named[1].decode()}" if named else "which phase it was of cannot be told"
    return InputError(
        f"line {number} of {path} is damaged ({reason(error)}; {of}): restore the file from a "
        "copy, or take that line out, and its phase is done again"
    )
