"""Features in the plane as inline SVG: colour by class, shape by origin (GFR, Figure 7)."""

from collections.abc import Sequence
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import TypeAdapter

from monitoring.analysis_schemas import FEATURES, FEATURES_OVER_STEPS, MOST_CLASSES
from monitoring.chart_data import figure
from monitoring.records import Damage, Record, read_value
from monitoring.run_folder import ANALYSES_FOLDER, FEATURES_FOLDER, OVER_STEPS_FILE

_LARGE, _SMALL, _EDGE = (520, 420), (220, 220), 12
"""Sizes of a picture, and of one of several beside each other."""
_MOST = 60
"""Pictures in a page, at most."""
_BESIDE = 10
"""Steps of a method that are drawn, at most: from the first to the last, evenly spaced."""
_HEADS = ("class", "origin", "x", "y")
_WORDS = {
    "test": "test images",
    "training": "training images",
    "start": "what exemplars began as",
    "exemplar": "exemplars kept",
    "generated": "generated",
}


def features(folder: Path, damage: Damage | None = None) -> list[Record]:
    """The features laid out of a run's models, by method, seed and step."""
    found = _read(folder, "step-*.json", FEATURES, damage)
    return sorted(found, key=lambda one: (one["method"], one["seed"], one["step"]))[:_MOST]


def features_over_steps(folder: Path, damage: Damage | None = None) -> list[Record]:
    """Those of the same images by all models of a chain, by method and seed."""
    found = _read(folder, OVER_STEPS_FILE, FEATURES_OVER_STEPS, damage)
    return sorted(found, key=lambda one: (one["method"], one["seed"]))[:_MOST]


def _read(folder: Path, name: str, schema: TypeAdapter[Any], damage: Damage | None) -> list[Record]:
    files = (folder / ANALYSES_FOLDER / FEATURES_FOLDER).glob(f"*/seed-*/{name}")
    read = (
        read_value(file, schema, damage, within=folder) for file in sorted(islice(files, _MOST + 1))
    )
    return [one for one in read if one is not None]


def feature_plots(found: Sequence[Record]) -> list[dict[str, Any]]:
    """What the report's template shows of each."""
    plots = []
    for one in found:
        colours = _colours(one["groups"])
        origins = list(dict.fromkeys(group["origin"] for group in one["groups"]))
        plots.append(
            {
                "title": f"{one['method']}, seed {one['seed']}, step {one['step']}",
                "classes": list(colours.items()),
                "origins": [(_WORDS[own], Markup(_key(own))) for own in origins],
                "chart": Markup(scatter(one["groups"], colours)),
            }
        )
    return plots


def step_plots(found: Sequence[Record], methods: Sequence[str]) -> list[dict[str, Any]]:
    """The same of each chain's steps, in the order of `methods`: a picture each, in one figure."""
    order = {method: number for number, method in enumerate(methods)}
    plots = []
    for one in sorted(found, key=lambda one: order.get(one["method"], len(order))):
        steps = sorted(one["steps"], key=lambda own: own["step"])
        colours = _colours([group for own in steps for group in own["groups"]])
        last, count = len(steps) - 1, min(_BESIDE, len(steps))
        spaced = [steps[round(n * last / max(1, count - 1))] for n in range(count)]
        drawn = "".join(
            f"<div><b>step {own['step']}</b>{_picture(own['groups'], colours, _SMALL)}</div>"
            for own in spaced
        )
        rows = [(own["step"], *row) for own in steps for row in _rows(own["groups"])]
        title = f"{one['method']}, seed {one['seed']}"
        chart = figure(
            f'<div class="beside">{drawn}</div>', f"features {title}", ("step", *_HEADS), rows
        )
        plots.append({"title": title, "classes": list(colours.items()), "chart": Markup(chart)})
    return plots


def _colours(groups: Sequence[Record]) -> dict[str, int]:
    """The colour of each class, by its place among them."""
    labels = dict.fromkeys(group["label"] for group in groups)
    return {label: number % MOST_CLASSES for number, label in enumerate(labels)}


def scatter(groups: Sequence[Record], colours: dict[str, int]) -> str:
    """A figure of groups' points; those of images below, then exemplars, then generated ones. A
    line leads from what an exemplar began as to the exemplar."""
    drawn = _picture(groups, colours, _LARGE)
    return figure(drawn, "plane", _HEADS, _rows(groups)) if drawn else ""


def _rows(groups: Sequence[Record]) -> list[tuple[str | float, ...]]:
    return [(g["label"], g["origin"], *point[:2]) for g in groups for point in g["points"]]


def _picture(groups: Sequence[Record], colours: dict[str, int], size: tuple[int, int]) -> str:
    every = [point for group in groups for point in group["points"]]
    if not every:
        return ""
    lows = [min(point[axis] for point in every) for axis in (0, 1)]
    highs = [max(point[axis] for point in every) for axis in (0, 1)]
    # one scale for both axes: only distances mean something
    scale = min(
        (side - 2 * _EDGE) / max(high - low, 1e-9)
        for side, low, high in zip(size, lows, highs, strict=True)
    )

    def place(point: Sequence[float]) -> tuple[float, float]:
        x, y = (point[axis] - (lows[axis] + highs[axis]) / 2 for axis in (0, 1))
        return size[0] / 2 + x * scale, size[1] / 2 - y * scale

    parts = [f'<svg class="plane" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="plane">']
    order = list(_WORDS)
    ends = {group["label"]: group["points"] for group in groups if group["origin"] == "exemplar"}
    for group in sorted(groups, key=lambda group: order.index(group["origin"])):
        told = escape(f"{group['label']}, {_WORDS[group['origin']]}")
        colour = f"var(--c{colours[group['label']]})"
        marks = "".join(_mark(group["origin"], *place(point)) for point in group["points"])
        if group["origin"] == "start":
            # a damaged file may have another number of either
            pairs = zip(group["points"], ends.get(group["label"], ()), strict=False)
            marks += "".join(_way(place(start), place(end)) for start, end in pairs)
        parts.append(f'<g style="--own:{colour}"><title>{told}</title>{marks}</g>')
    return "".join([*parts, "</svg>"])


def _mark(origin: str, x: float, y: float) -> str:
    """A dot of an image, a framed square of an exemplar, a ring of what it began as, a hollow
    triangle of what is generated."""
    if origin == "exemplar":
        return (
            f'<rect class="exemplar" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" rx="1"/>'
        )
    if origin == "start":
        return f'<circle class="start" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>'
    if origin == "generated":
        return f'<path class="generated" d="M{x:.1f} {y - 5:.1f}l4.6 8h-9.2z"/>'
    return f'<circle class="image" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>'


def _way(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (u, v) = start, end
    return f'<line class="way" x1="{x:.1f}" y1="{y:.1f}" x2="{u:.1f}" y2="{v:.1f}"/>'


def _key(origin: str) -> str:
    return (
        '<svg class="plane mark" viewBox="0 0 14 14" style="--own:var(--dim)">'
        f"{_mark(origin, 7, 7)}</svg>"
    )
