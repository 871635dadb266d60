"""What is added to a method, such as an expert, and what that gains: found where a run has the same
method without it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from monitoring.against import hosts
from monitoring.charts import Line, legend_mark, line_chart
from monitoring.gains import gains
from monitoring.records import Damage
from monitoring.results import METRICS, metrics

_SHOWN = ("class_accuracy", "average_accuracy")
"""The metrics drawn, as in the papers; of runs without them the first."""


def addition_charts(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    methods: Mapping[str, Any],
    looks: Mapping[str, int],
    damage: Damage,
) -> dict[str, Any] | None:
    """For the report: by metric how much more methods have than their hosts after each step, a
    line each, with the 95 % interval over the seeds that both have. None where there is no pair.

    `rows` are `monitoring.results.compare`'s, `methods` the settings of the run's methods.
    """
    finished = {row["method"] for row in rows}
    pairs = {m: h for m, h in hosts(methods).items() if {m, h} <= finished}
    if not pairs:
        return None
    titles = metrics(list(rows))
    shown = [metric for metric in _SHOWN if metric in titles] or list(titles)[:1]
    by_host = {host: gains([folder], host, damage) for host in dict.fromkeys(pairs.values())}
    charts = []
    for metric in shown:
        lines = []
        for method, host in pairs.items():
            steps = {
                step: own[metric][1].scaled(100)
                for (_, name, step), own in sorted(by_host[host].items())
                if name == method and metric in own
            }
            points = [(float(step), one.mean) for step, one in steps.items()]
            bands = [one.half_width or 0.0 for one in steps.values()]
            lines.append(Line(f"{method} - {host}", looks.get(method, 0), points, bands))
        chart = line_chart(lines, "after learning step", "points", whole_x=True)
        if chart:
            charts.append((METRICS.get(metric, titles[metric]), Markup(chart)))
    legend = [
        (f"{method} - {host}", Markup(legend_mark(looks.get(method, 0))))
        for method, host in pairs.items()
    ]
    return {"charts": charts, "legend": legend} if charts else None
