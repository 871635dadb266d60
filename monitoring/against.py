"""Accuracy against a setting, such as k similar classes (discriminative distillation, Figure 7):
found where a run has methods that differ in one number alone."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from markupsafe import Markup

from monitoring.charts import Line, legend_mark, line_chart
from monitoring.results import METRICS, metrics
from untrusted.text import printable

_FEWEST = 3
"""Values of a setting that make a curve."""
_MOST_LEAVES, _MOST_LINES = 200, 40
_SHOWN = ("class_accuracy", "average_accuracy")
"""The metrics drawn, as in the paper; of runs without them the first."""
_ALONE = 10
"""What the look of the host's line differs by: the same colour, dashed."""
_LOG = 100.0
"""How many times the smallest value the largest is at least on a logarithmic axis."""
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """Methods that differ in one number alone."""

    setting: str
    """The dotted key of that number."""
    name: str
    methods: Mapping[float, str]
    """By the number, ascending."""
    alone: str | None
    """The method that lacks the group of the setting, and is the same otherwise: the host."""


def _leaves(settings: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from _leaves(value, f"{key}.{name}" if key else name)
    else:
        yield key, settings


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(leaves: Mapping[str, Any]) -> str:
    return json.dumps(sorted(leaves.items()), default=str)


def _by_leaves(methods: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By method its settings by dotted key, and by all of them in words which method has them."""
    leaves = {name: dict(_leaves(settings)) for name, settings in methods.items()}
    leaves = {name: own for name, own in leaves.items() if 0 < len(own) <= _MOST_LEAVES}
    whole: dict[str, str] = {}
    for name, own in leaves.items():
        whole.setdefault(_same(own), name)
    return leaves, whole


def sweeps(methods: Mapping[str, Any]) -> list[Sweep]:
    """Those of a run's `methods`, settings by name, that have three numbers or more."""
    leaves, whole = _by_leaves(methods)
    groups: dict[tuple[str, str], dict[float, str]] = {}
    for name, own in leaves.items():
        for key, value in own.items():
            if _is_number(value):
                others = _same({k: v for k, v in own.items() if k != key})
                groups.setdefault((key, others), {}).setdefault(value, name)
    found = []
    for (key, _), by_value in groups.items():
        if len(by_value) >= _FEWEST:
            members = {value: by_value[value] for value in sorted(by_value)}
            host = _host(key, leaves[members[min(members)]], whole)
            found.append(Sweep(key, host or _in_common([*members.values()]), members, host))
    return found[:_MOST_LINES]


def hosts(methods: Mapping[str, Any]) -> dict[str, str]:
    """By method of a run, settings by name, the one that lacks a group of its settings, such as
    `expert`, and is the same otherwise."""
    leaves, whole = _by_leaves(methods)
    found: dict[str, str] = {}
    for name, own in list(leaves.items())[:_MOST_LINES]:
        for key in own:
            if (host := _host(key, own, whole)) is not None and host != name:
                found.setdefault(name, host)
    return found


def _host(key: str, leaves: Mapping[str, Any], whole: Mapping[str, str]) -> str | None:
    """The method without the group that `key` is in: null, where the others have settings."""
    group, dot, _ = key.rpartition(".")
    if not dot:
        return None
    without = {k: v for k, v in leaves.items() if not k.startswith(f"{group}.")}
    return whole.get(_same({**without, group: None}))


def _in_common(names: Sequence[str]) -> str:
    """What the names begin with, or the first of them."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same).rstrip("-_+.=") or names[0]


def setting_charts(rows: Rows, methods: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For the report: of each setting its charts, a metric each and a line a sweep, dashed the host
    alone, after the newest step that all of a sweep's methods have finished.

    `rows` are `monitoring.results.compare`'s, `methods` the settings of the run's methods.
    """
    by_setting: dict[str, list[Sweep]] = {}
    for sweep in sweeps(methods):
        by_setting.setdefault(sweep.setting, []).append(sweep)
    titles = metrics(list(rows))
    shown = [m for m in _SHOWN if m in titles] or list(titles)[:1]
    drawn = []
    for setting, own in by_setting.items():
        values = sorted({value for sweep in own for value in sweep.methods})
        log = values[0] > 0 and values[-1] >= _LOG * values[0]
        charts = []
        for metric in shown:
            lines = [line for n, sweep in enumerate(own) for line in _lines(rows, sweep, metric, n)]
            chart = line_chart(
                lines,
                printable(setting),
                f"{titles[metric]}, %",
                whole_x=not log and len(values) <= 10,
                log_x=log,
                within=(0, 100),
            )
            if chart:
                charts.append((METRICS.get(metric, titles[metric]), Markup(chart)))
        if charts:
            legend = [(sweep.name, Markup(legend_mark(n))) for n, sweep in enumerate(own)]
            alone = any(sweep.alone for sweep in own)
            drawn.append({"name": setting, "charts": charts, "legend": legend, "alone": alone})
    return drawn


def _lines(rows: Rows, sweep: Sweep, metric: str, look: int) -> Iterator[Line]:
    """A sweep's line, and the level of its host where that has finished the same step."""
    found = {(row["method"], row["step"]): row[metric] for row in rows if metric in row}
    steps = [{step for method, step in found if method == own} for own in sweep.methods.values()]
    if not (common := set.intersection(*steps)):
        return
    step = max(common)
    cells = {value: found[method, step] for value, method in sweep.methods.items()}
    points = [(float(value), 100 * cell["mean"]) for value, cell in cells.items()]
    bands = [100 * cell["half_width"] for cell in cells.values()]
    yield Line(f"{sweep.name}, step {step}", look, points, bands)
    if sweep.alone and (alone := found.get((sweep.alone, step))) is not None:
        level = [(value, 100 * alone["mean"]) for value in (points[0][0], points[-1][0])]
        yield Line(f"{sweep.alone} alone, step {step}", look + _ALONE, level)
