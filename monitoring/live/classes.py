"""What the live page shows class by class, as plain values: maps over steps, and exemplars."""

from pathlib import Path
from typing import Any

from monitoring.incremental_charts import CONFUSION, TASKS, Cells, confusion_cells, task_cells
from monitoring.live.files import Stamp, stamp
from monitoring.live.values import Chain
from monitoring.records import checked
from monitoring.run_folder import EXEMPLARS_FILE
from monitoring.schemas import EXEMPLARS
from untrusted.files import read_bytes
from untrusted.json_text import parse_json

MOST_DRAWN = 100
"""Learning steps of a map, which has a cell for each two: a page that is drawn again and again has
to stay quick."""
_MOST_NUMBERS = 500_000
"""Of all maps of a run: a stranger's may have any."""
_FILES_BYTES = 1 << 24
"""Of the exemplars of one page."""


class Classes:
    """The maps of a run's evaluations, and where its exemplars are. `version` changes with them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._rows: dict[tuple[Chain, int], dict[str, Any]] = {}
        self._numbers = 0
        self._sheets: dict[tuple[Chain, int], tuple[Stamp, Path]] = {}
        self.version = 0

    def hear(self, chain: Chain, step: int, evaluation: dict[str, Any]) -> None:
        """Takes the maps of an evaluation that is new or changed."""
        before = self._rows.pop((chain, step), None)
        row: dict[str, Any] = {}
        row |= {key: evaluation[key] for key in ("tasks", "confusion") if key in evaluation}
        if before is None and not row:
            return
        self.version += 1
        self._numbers += _numbers(row) - _numbers(before or {})
        size = max(map(len, row.values()), default=0)
        if step >= MOST_DRAWN or size > MOST_DRAWN or self._numbers > _MOST_NUMBERS:
            self._numbers -= _numbers(row)
            row = {"left_out": True}
        self._rows[chain, step] = {"method": chain[0], "step": step, **row}

    def look(self, chain: Chain, step: int, folder: Path) -> None:
        """Notices a step's exemplars that are new or changed; they are read when they are shown."""
        file, key = folder / EXEMPLARS_FILE, (chain, step)
        now = stamp(file)
        if now == self._sheets.get(key, (None,))[0]:
            return
        self.version += 1
        if now is None:
            del self._sheets[key]
        else:
            self._sheets[key] = now, file

    def of(self, seed: int, methods: list[str]) -> dict[str, Any]:
        """What is shown of one seed: the maps and the newest exemplars of those of `methods` that
        have some, and what is left out."""
        rows = [row for (chain, _), row in sorted(self._rows.items()) if chain[1] == seed]
        tasks, said = task_cells(rows, methods), []
        if any("left_out" in row for row in rows):
            said.append(f"maps of more than {MOST_DRAWN} learning steps: the report draws them")
        sheets = self._exemplars(seed, methods, said) if tasks else []
        return {
            "tasks": {"row": TASKS.row, "column": TASKS.column, "maps": _plain(tasks)},
            "confusion": {
                "row": CONFUSION.row,
                "column": CONFUSION.column,
                "maps": _plain(confusion_cells(rows, methods)),
            },
            "sheets": sheets,
            "left_out": said,
        }

    def _exemplars(self, seed: int, methods: list[str], said: list[str]) -> list[dict[str, Any]]:
        """Of each method the exemplars of its newest step; `said` hears of those left out."""
        last: dict[str, int] = {}
        for (method, own), step in self._sheets:
            if own == seed:
                last[method] = max(step, last.get(method, 0))
        found, room = [], _FILES_BYTES
        for method in (method for method in methods if method in last):
            step = last[method]
            (_, size, _), file = self._sheets[(method, seed), step]
            room -= size
            if room < 0:
                said.append(f"exemplars from {method} on: they are too large")
                break
            try:
                read = checked(parse_json(read_bytes(file, _FILES_BYTES, self._root)), EXEMPLARS)
            except (OSError, ValueError):
                said.append(f"exemplars of {method}: {EXEMPLARS_FILE} is damaged")
                continue
            found.append({"method": method, "step": step, **read})
        return found


def _numbers(row: dict[str, Any]) -> int:
    return sum(map(len, row.get("confusion", ()))) + len(row.get("tasks", ()))


def _plain(maps: list[tuple[str, Cells]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "cells": [(*cell, share) for cell, share in sorted(cells.items())]}
        for name, cells in maps
    ]
