"""What methods gain over another one, such as a plug-in over its host: of the same seeds."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from monitoring.intervals import Difference, paired
from monitoring.records import Damage, evaluations
from monitoring.results import figures
from untrusted.errors import InputError
from untrusted.text import printable

PAIRED = "brackets: 95 % interval of the mean over seeds, paired (Student's t)"
Gains = dict[tuple[str, str, int], dict[str, tuple[str, Difference]]]
"""By run, method and step the differences of each metric, with its title."""


def gains(folders: Iterable[Path], against: str, damage: Damage | None = None) -> Gains:
    """Every method's metrics minus those of `against` in the same run, after each step, over the
    seeds that both have finished. Raises InputError naming the methods that there are."""
    found: Gains = {}
    known: dict[str, None] = {}
    for folder in folders:
        of_method: dict[tuple[str, int], dict[int, dict[str, tuple[str, float]]]] = {}
        for one in evaluations(folder, damage):
            known[one["method"]] = None
            own = of_method.setdefault((one["method"], one["step"]), {})
            own[one["seed"]] = figures(one)
        for (method, step), these in of_method.items():
            those = of_method.get((against, step))
            if method == against or those is None:
                continue
            titles = {metric: one[0] for own in these.values() for metric, one in own.items()}
            for metric, title in titles.items():
                sides = (
                    {seed: own[metric][1] for seed, own in side.items() if metric in own}
                    for side in (these, those)
                )
                if (difference := paired(*sides)) is not None:
                    row = found.setdefault((folder.name, method, step), {})
                    row[metric] = title, difference
    if against not in known:
        raise InputError(f"no run has a method {against!r}, only: {', '.join(known)}")
    return found


def told_gains(found: Gains, row: dict[str, Any]) -> dict[str, Any]:
    """Those of one of `monitoring.results.compare`'s rows, as plain values by metric."""
    own = found.get((row["run"], row["method"], row["step"]), {})
    return {metric: {"title": title, **one.values()} for metric, (title, one) in own.items()}


def gain_tables(found: Gains, against: str) -> list[Table]:
    """One table a metric: methods down, learning steps across, points of a percent."""
    several = len({run for run, _, _ in found}) > 1
    steps = sorted({step for _, _, step in found})
    titles = {metric: title for own in found.values() for metric, (title, _) in own.items()}
    tables = []
    for metric, title in titles.items():
        table = Table(
            title=Text(printable(f"{title}: minus {against} (points)")),
            title_justify="left",
            title_style="bold",
        )
        table.add_column("method")
        for step in steps:
            table.add_column(f"step {step}", justify="right")
        for run, method in dict.fromkeys(key[:2] for key in found):
            cells = [_cell(found.get((run, method, step), {}).get(metric)) for step in steps]
            table.add_row(Text(printable(f"{run}: {method}" if several else method)), *cells)
        tables.append(table)
    if tables and _have_intervals(found):
        tables[-1].caption, tables[-1].caption_justify = PAIRED, "left"
    return tables


def _have_intervals(found: Gains) -> bool:
    every: Sequence[Difference] = [one for own in found.values() for _, one in own.values()]
    return any(one.half_width is not None for one in every)


def _cell(found: tuple[str, Difference] | None) -> str:
    return "–" if found is None else found[1].scaled(100).written()
