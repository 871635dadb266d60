"""Errors on learned classes, split into confusion and forgetting: read, in tables and charts."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from monitoring.analysis_schemas import ERRORS
from monitoring.charts import Line, line_chart
from monitoring.gains import PAIRED
from monitoring.intervals import Difference, half_width, paired
from monitoring.records import Damage, Record, read_value
from monitoring.run_folder import ANALYSES_FOLDER, CONFUSION_FILE
from untrusted.text import printable

PARTS = {
    "wrong": "all errors",
    "confusion": "confusion: taken for a class of the same meta-class",
    "forgetting": "forgetting: old classes' images taken for another meta-class",
    "other": "neither: new classes' images taken for another meta-class",
}
"""What is counted of the errors; the last three add up to the first."""
_Counts = dict[int, dict[int, Record]]
"""Errors by step and seed."""


def error_split(folder: Path, damage: Damage | None = None) -> Record | None:
    """The errors of a run's models; None where they were never counted."""
    path = folder / ANALYSES_FOLDER / CONFUSION_FILE
    found: Record | None = read_value(path, ERRORS, damage, within=folder)
    return found


def by_method(chains: Sequence[Record]) -> dict[str, _Counts]:
    """The errors by method, step and seed."""
    found: dict[str, _Counts] = {}
    for chain in chains:
        own = found.setdefault(chain["method"], {})
        for errors in chain["steps"]:
            own.setdefault(errors["step"], {})[chain["seed"]] = errors
    return found


def split_tables(chains: Sequence[Record]) -> Iterator[Table]:
    """A table a part: methods down, steps across, images, mean ± standard deviation over seeds."""
    found = by_method(chains)
    steps = sorted({step for own in found.values() for step in own})
    for part, title in PARTS.items():
        table = _table(f"{title} (images)", "method", steps)
        for method, own in found.items():
            cells = (_cell(own.get(step, {}), part) for step in steps)
            table.add_row(Text(printable(method)), *cells)
        yield table


def _table(title: str, first: str, steps: Sequence[int]) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    table.add_column(first)
    for step in steps:
        table.add_column(f"step {step}", justify="right")
    return table


def _cell(seeds: dict[int, Record], part: str) -> str:
    values = [errors[part] for errors in seeds.values()]
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):,.0f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):,.0f}{spread}"


def differences(
    chains: Sequence[Record], method: str, against: str
) -> dict[str, dict[int, Difference]]:
    """By part and step the errors of `method` minus those of `against`, of the same seeds."""
    found = by_method(chains)
    these, those = found.get(method, {}), found.get(against, {})
    made: dict[str, dict[int, Difference]] = {}
    for part in PARTS:
        made[part] = {}
        for step in sorted(these.keys() & those.keys()):
            sides = ({s: own[step][s][part] for s in own[step]} for own in (these, those))
            if (difference := paired(*sides)) is not None:
                made[part][step] = difference
    return made


def told_differences(chains: Sequence[Record], method: str, against: str) -> list[dict[str, Any]]:
    """`differences` as plain values, one a part and step."""
    return [
        {"method": method, "against": against, "part": part, "step": step, **one.values()}
        for part, steps in differences(chains, method, against).items()
        for step, one in steps.items()
    ]


def difference_table(chains: Sequence[Record], method: str, against: str) -> Table:
    """A row a part: how many errors more or fewer than another method's, with 95 % intervals."""
    found = differences(chains, method, against)
    steps = sorted({step for own in found.values() for step in own})
    table = _table(printable(f"errors of {method} - {against} (images)"), "part", steps)
    for part, own in found.items():
        table.add_row(part, *(own[step].written() if step in own else "–" for step in steps))
    if any(one.half_width is not None for own in found.values() for one in own.values()):
        table.caption, table.caption_justify = PAIRED, "left"
    return table


def split_charts(
    chains: Sequence[Record], methods: Sequence[str], looks: dict[str, int]
) -> list[tuple[str, Markup]]:
    """For the report a chart a part: its share of all test images over steps, a line a method."""
    found, charts = by_method(chains), []
    for part, title in list(PARTS.items())[1:]:
        lines = []
        for method in (method for method in methods if method in found):
            points, bands = [], []
            for step, seeds in sorted(found[method].items()):
                shares = [100 * one[part] / max(1, one["images"]) for one in seeds.values()]
                points.append((float(step), statistics.fmean(shares)))
                bands.append(half_width(shares) or 0.0)
            lines.append(Line(method, looks[method], points, bands))
        chart = line_chart(
            lines,
            "after learning step",
            f"{part}, % of test images",
            whole_x=True,
            within=(0, 100),
        )
        charts.append((title, Markup(chart)))
    return [(title, chart) for title, chart in charts if chart]
