"""What methods keep from one learning step for the next, in bytes: exemplars, a generator of
features and the model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from monitoring.records import Damage, Record, evaluations, read_value, step_files
from monitoring.run_folder import (
    EXEMPLARS_FILE,
    GENERATOR_CARD,
    GENERATOR_FOLDER,
    IMPORTANCE_FOLDER,
    IMPORTANCES_FILE,
)
from monitoring.schemas import EXEMPLARS, GENERATOR
from untrusted.files import open_regular
from untrusted.text import printable

IMAGES = "exemplar_images"
IMPORTANCE_BYTES = "importance_bytes"
GENERATOR_BYTES = "generator_bytes"
KEPT = {
    IMAGES: "exemplars, images",
    "exemplar_bytes": "exemplars as stored",
    "exemplar_pixel_bytes": "exemplars as pixels",
    GENERATOR_BYTES: "generator",
    "network_bytes": "network",
    "rows_bytes": "classifier rows",
    IMPORTANCE_BYTES: "importances",
}
"""Of `memory`, in words. All but the images are bytes."""


def exemplars(folder: Path, damage: Damage | None = None) -> list[Record]:
    """What every step that kept exemplars says of them, with its method, seed and step."""
    read = (
        (where, read_value(path=file, kind=EXEMPLARS, damage=damage, within=folder))
        for where, file in step_files(folder, EXEMPLARS_FILE, damage)
    )
    return [{**found, **where} for where, found in read if found is not None]


def importances(folder: Path, damage: Damage | None = None) -> list[Record]:
    """The bytes of how much each parameter matters, where a step left that (EWC, MAS), with its
    method, seed and step. The parameters themselves are the network's."""
    found = []
    for where, path in step_files(folder, IMPORTANCE_FOLDER, damage):
        try:
            with open_regular(path / IMPORTANCES_FILE, folder) as file:
                found.append({IMPORTANCE_BYTES: os.fstat(file.fileno()).st_size, **where})
        except OSError:  # not finished, or no run's
            continue
    return found


def generators(folder: Path, damage: Damage | None = None) -> list[Record]:
    """The bytes of the generator of features that a step left, with its method, seed and step."""
    read = (
        (where, read_value(path / GENERATOR_CARD, GENERATOR, damage, within=folder))
        for where, path in step_files(folder, GENERATOR_FOLDER, damage)
    )
    return [{GENERATOR_BYTES: found["bytes"], **where} for where, found in read if found]


def memory(
    folder: Path, damage: Damage | None = None, models: Sequence[Record] | None = None
) -> dict[tuple[str, int], dict[str, int]]:
    """By method and learning step what is kept after it, of its first seed: a number for some of
    `KEPT`.

    Steps have their models' bytes from their evaluations, or from `models`: ``model_bytes`` with
    method, seed and step.

    Of a method without exemplars and generator there is only the model. Steps whose models are not
    tested class by class are left out.
    """
    found: dict[tuple[str, int], dict[str, int]] = {}
    given = evaluations(folder, damage) if models is None else models
    for one in sorted(given, key=lambda one: -one["seed"]):
        if (sizes := one.get("model_bytes")) is not None:
            own = {f"{part}_bytes": count for part, count in sizes.items()}
            found[one["method"], one["step"]] = own
    for one in sorted(exemplars(folder, damage), key=lambda one: -one["seed"]):
        if (one["method"], one["step"]) in found:
            own = {IMAGES: one["images"], "exemplar_bytes": one["bytes"]}
            if "pixel_bytes" in one:
                own["exemplar_pixel_bytes"] = one["pixel_bytes"]
            found[one["method"], one["step"]] |= own
    for one in sorted(importances(folder, damage), key=lambda one: -one["seed"]):
        if (one["method"], one["step"]) in found:
            found[one["method"], one["step"]][IMPORTANCE_BYTES] = one[IMPORTANCE_BYTES]
    for one in sorted(generators(folder, damage), key=lambda one: -one["seed"]):
        if (one["method"], one["step"]) in found:
            found[one["method"], one["step"]][GENERATOR_BYTES] = one[GENERATOR_BYTES]
    return {key: {n: own[n] for n in KEPT if n in own} for key, own in found.items()}


def megabytes(count: int) -> str:
    """Bytes in MB, as papers give them; two digits of less than one."""
    return f"{count / 1e6:,.2f}" if count >= 1e6 else f"{count / 1e6:.2g}"


def memory_cells(own: dict[str, int]) -> list[str]:
    """`memory` of one method in the order of `KEPT`, the bytes in MB."""
    cells = {name: f"{own[name]:,}" if name == IMAGES else megabytes(own[name]) for name in own}
    return [cells.get(name, "–") for name in KEPT]


def newest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of `monitoring.results.compare`'s rows those with a memory, of each method's last step."""
    last = {}
    for row in sorted((row for row in rows if "memory" in row), key=lambda row: row["step"]):
        last[row["run"], row["method"]] = row
    return list(last.values())


def memory_table(rows: Sequence[dict[str, Any]]) -> Table | None:
    """What is kept after each method's newest step; none where nothing is known of that."""
    shown = newest(rows)
    if not shown:
        return None
    several = len({row["run"] for row in shown}) > 1
    title = Text("kept after the newest step, first seed (MB)")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("method")
    for head in KEPT.values():
        table.add_column(head, justify="right")
    for row in shown:
        name = f"{row['run']}: {row['method']}" if several else row["method"]
        table.add_row(Text(printable(name)), *memory_cells(row["memory"]))
    return table
