"""The report's part on class-incremental learning: accuracies, confusion, exemplars, memory."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from monitoring.heat_maps import Axes, heat_map
from monitoring.memory import KEPT, exemplars, memory_cells, newest
from monitoring.records import Damage
from monitoring.run_folder import EXEMPLARS_FILE

TASKS = Axes("model after step", "classes of step")
CONFUSION = Axes("images of step", "taken for a class of step")
Rows = list[dict[str, Any]]
Cells = dict[tuple[int, int], float]
Drawn = list[tuple[str, Markup]]


def class_incremental(
    folder: Path, rows: Rows, methods: list[str], room: int, damage: Damage
) -> dict[str, Any] | None:
    """What the report's template shows; none where no learned class is tested.

    `rows` are `monitoring.results.compare`'s of the run `folder`, `methods` the order to show them
    in. Of exemplars, as many methods are shown as `room` bytes have place for.
    """
    tasks = _drawn(task_cells(rows, methods), TASKS)
    if not tasks:
        return None
    kept = {row["method"]: row["memory"] for row in newest(rows)}
    return {
        "tasks": tasks,
        "confusion": _drawn(confusion_cells(rows, methods), CONFUSION),
        "heads": list(KEPT.values()),
        "memory": [(m, memory_cells(kept[m])) for m in methods if m in kept],
        "sheets": _sheets(exemplars(folder, damage), methods, room, damage),
    }


def _drawn(maps: list[tuple[str, Cells]], axes: Axes) -> Drawn:
    return [(name, Markup(heat_map(cells, axes, scale=(0, 1)))) for name, cells in maps]


def task_cells(rows: Rows, methods: list[str]) -> list[tuple[str, Cells]]:
    """For each method the accuracy [after step t, on the classes of step k], mean over seeds."""
    maps = []
    for method in methods:
        cells = {
            (row["step"], task): share
            for row in rows
            if row["method"] == method
            for task, share in enumerate(row.get("tasks", ())[: row["step"] + 1])
        }
        if cells:
            maps.append((method, cells))
    return maps


def confusion_cells(rows: Rows, methods: list[str]) -> list[tuple[str, Cells]]:
    """For each method, after its newest step, the share of the images of step j's classes that are
    taken for a class of step k, mean over seeds."""
    maps = []
    for method in methods:
        own = [row for row in rows if row["method"] == method and "confusion" in row]
        if own:
            last = max(own, key=lambda row: row["step"])
            cells = {
                (true, said): share
                for true, shares in enumerate(last["confusion"])
                for said, share in enumerate(shares)
            }
            maps.append((f"{method}, step {last['step']}", cells))
    return maps


def _jpegs(shown: dict[str, Any]) -> list[str]:
    return [*shown["jpegs"], *shown.get("before", ())]


def _sheets(found: Rows, methods: list[str], room: int, damage: Damage) -> Rows:
    """Of each method, first seed, the exemplars of its newest step."""
    last: dict[str, dict[str, Any]] = {}
    for one in sorted(found, key=lambda one: (one["step"], -one["seed"])):
        last[one["method"]] = one
    shown = []
    for method in (method for method in methods if method in last):
        one = last[method]
        room -= sum(len(jpeg) for own in one["shown"] for jpeg in _jpegs(own))
        if room < 0:
            damage[EXEMPLARS_FILE] = f"those from {method} on are left out: they are too large"
            break
        shown.append(one)
    return shown
