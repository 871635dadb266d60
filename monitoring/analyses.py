"""What analyses of a run found: read from its folder, and in tables."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from monitoring.analysis_schemas import SIMILARITIES
from monitoring.records import Damage, Record, read_value
from monitoring.run_folder import ANALYSES_FOLDER, SIMILARITY_FILE
from untrusted.text import printable

Layers = dict[str, float]


def similarities(folder: Path, damage: Damage | None = None) -> list[Record]:
    """How alike the models of each chain are, layer by layer; none where that was never asked."""
    path = folder / ANALYSES_FOLDER / SIMILARITY_FILE
    found = read_value(path, SIMILARITIES, damage, within=folder)
    return [] if found is None else list(found["chains"])


def similarity_by_method(
    chains: Sequence[Record], figure: str = "mean"
) -> dict[str, dict[tuple[int, int], Layers]]:
    """By method, and (the step that learned the classes, the later step), a layer's similarity,
    or its `figure`: the mean over seeds."""
    every: dict[str, dict[tuple[int, int], dict[str, list[float]]]] = {}
    for chain in chains:
        for cell in chain["cells"]:
            own = every.setdefault(chain["method"], {})
            layers = own.setdefault((cell["task"], cell["step"]), defaultdict(list))
            for name, found in cell["layers"].items():
                layers[name].append(found[figure])
    return {
        method: {
            at: {name: statistics.fmean(of_seeds) for name, of_seeds in layers.items()}
            for at, layers in cells.items()
        }
        for method, cells in every.items()
    }


def similarity_tables(chains: Sequence[Record]) -> list[Table]:
    """Two tables, method × layer: after each method's newest step the similarity on the classes of
    step 0, and its mean over the classes of all earlier steps."""
    found, floors = similarity_by_method(chains), similarity_by_method(chains, "floor")
    columns = list(
        dict.fromkeys(n for cells in found.values() for own in cells.values() for n in own)
    )
    drawn = []
    for title, only_first in (("step 0's classes", True), ("all earlier classes, mean", False)):
        table = Table(
            title=Text(f"similarity with the model that learned them: {title} (%)"),
            title_justify="left",
            title_style="bold",
            caption=Text("in brackets: what unrelated features would be found to have"),
            caption_justify="left",
        )
        table.add_column("method")
        table.add_column("step", justify="right")
        for name in columns:
            table.add_column(Text(printable(name)), justify="right")
        for method, cells in found.items():
            newest = max(step for _, step in cells)
            chosen = [at for at in cells if at[1] == newest and (at[0] == 0 or not only_first)]
            row = [
                _cell(
                    [cells[at].get(name) for at in chosen],
                    [floors[method][at].get(name) for at in chosen],
                )
                for name in columns
            ]
            table.add_row(Text(printable(method)), str(newest), *row)
        drawn.append(table)
    return drawn


def _cell(values: Sequence[float | None], floors: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    floor = statistics.fmean(value for value in floors if value is not None)
    return f"{100 * statistics.fmean(known):.1f} ({100 * floor:.0f})"
