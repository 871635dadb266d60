"""Charts of compatibility: heat maps over a chain, gains with intervals, backfill curves."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from monitoring.chart_data import figure
from monitoring.charts import WIDTH, Line, colour_of, line_chart, margin_of, ticks
from monitoring.compatibility import in_words
from monitoring.heat_maps import Axes, heat_map

Comparisons = list[dict[str, Any]]
_SEARCHES = Axes("queries by step", "gallery by step")


def matrices(found: Comparisons) -> list[tuple[str, str]]:
    """For each method and operating point M(query model, gallery model) over its learning steps.

    Of the first seed. The diagonal is each model with itself; below it, new queries search old
    vectors; above it, old queries search new ones.
    """
    charts = []
    for method in dict.fromkeys(one["method"] for one in found):
        own = _first_seed(found, method)
        for point in dict.fromkeys(point["point"] for one in own for point in one["points"]):
            cells: dict[tuple[int, int], float] = {}
            holds: dict[tuple[int, int], bool] = {}
            for one, figures in ((o, p) for o in own for p in o["points"] if p["point"] == point):
                old, new = one["against"], one["step"]
                cells[old, old], cells[new, old] = figures["old_old"], figures["new_old"]
                cells[old, new], cells[new, new] = figures["old_new"], figures["new_new"]
                holds[new, old] = figures["holds"]
            charts.append((f"{method}: {in_words(point)}, %", heat_map(cells, _SEARCHES, holds)))
    return charts


def _first_seed(found: Comparisons, method: str) -> Comparisons:
    own = [one for one in found if one["method"] == method]
    first = min(one["seed"] for one in own)
    return [one for one in own if one["seed"] == first]


def gain_charts(found: Comparisons, looks: dict[str, int]) -> list[tuple[str, str]]:
    """For each operating point every method's gain on the step before, with its interval.

    Of the first seed, a mark a learning step.
    """
    every: dict[str, list[tuple[str, int, dict[str, Any]]]] = {}
    for method in dict.fromkeys(one["method"] for one in found):
        for one in _first_seed(found, method):
            if one["against"] == one["step"] - 1:
                for point in one["points"]:
                    every.setdefault(point["point"], []).append((method, one["step"], point))
    return [
        (f"Gain on the step before, {in_words(point)}, points", whiskers(marks, looks))
        for point, marks in every.items()
    ]


def whiskers(marks: Sequence[tuple[str, int, dict[str, Any]]], looks: dict[str, int]) -> str:
    """A figure of gains (method, learning step, comparison at a point) with intervals, around 0.

    Losses far beyond the gains (models that are not compatible at all) are written, not drawn.
    """
    values = [100 * mark[2]["gain"][key] for mark in marks for key in ("low", "high")]
    best = max(0.0, *values)
    scale = ticks(max(min(0.0, *values), -max(10.0, 2 * best)), best)
    low, high = scale[0], scale[-1]
    names = [f"{method}, {step} on {step - 1}" for method, step, _ in marks]
    left, right, pitch = min(margin_of(names), WIDTH / 2), 22, 24
    height = pitch * len(marks) + 40

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - right)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="gains">']
    for tick in scale:
        style = ' style="stroke:var(--dim)"' if tick == 0 else ""
        parts.append(
            f'<line class="grid"{style} x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="4" '
            f'y2="{height - 28}"/><text class="tick" x="{at(tick):.1f}" y="{height - 12}" '
            f'text-anchor="middle">{tick:+g}</text>'
        )
    for number, (name, mark) in enumerate(zip(names, marks, strict=True)):
        y = pitch * number + 18
        parts.append(
            f'<text class="tick" x="{left - 8:.1f}" y="{y + 4}" text-anchor="end">'
            f"{escape(name)}</text>"
        )
        parts.append(
            _whisker(mark=mark, y=y, at=at, low=low, colour=colour_of(looks.get(mark[0], 0)))
        )
    rows = [
        (name, *(100 * point["gain"][key] for key in ("value", "low", "high")), str(point["holds"]))
        for name, (_, _, point) in zip(names, marks, strict=True)
    ]
    heads = ("steps", "gain, points", "low", "high", "holds")
    return figure("".join([*parts, "</svg>"]), "gains", heads, rows)


def _whisker(
    mark: tuple[str, int, dict[str, Any]],
    y: int,
    at: Callable[[float], float],
    low: float,
    colour: str,
) -> str:
    """A gain with its interval at height `y`, or its number where it lies below `low`."""
    method, step, point = mark
    value, first, last = (100 * point["gain"][key] for key in ("value", "low", "high"))
    if value < low:
        where = f'x="{at(low) + 4:.1f}" y="{y + 4}" style="fill:{colour}"'
        return f'<text class="tick" {where}>◂ {value:+.1f}</text>'
    verdict = "the criterion holds" if point["holds"] else "the criterion does not hold"
    fill = colour if point["holds"] else "var(--card)"
    return (
        f'<line x1="{at(max(low, first)):.1f}" x2="{at(last):.1f}" y1="{y}" y2="{y}" '
        f'stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{at(value):.1f}" cy="{y}" r="4.5" fill="{fill}" stroke="{colour}" '
        f'stroke-width="2"><title>{escape(method)}, step {step} on step {step - 1}: {value:+.2f} '
        f"({first:+.2f} … {last:+.2f}), {verdict}</title></circle>"
    )


def backfill_charts(found: Comparisons) -> list[tuple[str, str]]:
    """For each method and operating point, its newest model on the gallery of the step before."""
    charts = []
    for method in dict.fromkeys(one["method"] for one in found):
        own = _first_seed(found, method)
        newest = max(own, key=lambda one: (one["step"], one["against"]))
        before = {point["point"]: point["old_old"] for point in newest["points"]}
        for curve in newest["backfill"]:
            xs = [100 * share for share in curve["share"]]
            mean, least, most = (curve["random"][key] for key in ("mean", "least", "most"))
            spread = [100 * max(h - m, m - lo) for m, lo, h in zip(mean, least, most, strict=True)]
            base = before[curve["point"]]
            lines = [
                Line("random order", 0, _points(xs, mean), spread),
                Line("isolated first", 2, _points(xs, curve["isolated"])),
                Line("old queries, nothing re-embedded", 8, _points(xs, [base] * len(xs))),
            ]
            name = in_words(curve["point"])
            label = f"{method}, {newest['step']} on {newest['against']}: {name}, %"
            chart = line_chart(lines, "re-embedded, %", name, points=False, within=(0, 100))
            charts.append((label, chart))
    return charts


def _points(xs: list[float], ys: list[float]) -> list[tuple[float, float]]:
    return [(x, 100 * y) for x, y in zip(xs, ys, strict=True)]


def flip_rows(found: Comparisons) -> list[dict[str, Any]]:
    """For each method its newest model's flips against the step before, first seed."""
    rows = []
    for method in dict.fromkeys(one["method"] for one in found):
        newest = max(_first_seed(found, method), key=lambda one: (one["step"], one["against"]))
        steps = f"{newest['step']} on {newest['against']}"
        rows.append({"method": method, "steps": steps, **newest["flips"]})
    return rows
