"""Heat maps of how alike models see a step's classes, layer by layer (GFR, Figure 2), as SVG."""

from collections.abc import Mapping
from html import escape

from markupsafe import Markup

from monitoring.analyses import Layers, similarity_by_method
from monitoring.chart_data import figure
from monitoring.records import Record

_TASKS = 5
"""Steps whose classes are shown, at most: from the first to the last but one, evenly spaced."""
_LEFT, _TOP, _TALL, _SMALL, _GAP, _HEAD = 104, 40, 26, 12, 30, 14
_WIDTH = 72
"""Of a column: phones show its name larger."""
_HEADS = ("classes of step", "after step", "layer", "%", "unrelated features, %")
_WRITTEN = 24
"""Rows in which there is room for numbers."""


def similarity_maps(chains: list[Record], methods: list[str]) -> list[tuple[str, Markup]]:
    """A map for each of `methods` that was looked at, mean over seeds."""
    found, floors = similarity_by_method(chains), similarity_by_method(chains, "floor")
    shown = [m for m in methods if m in found] + sorted(found.keys() - set(methods))
    drawn = []
    for method in (method for method in shown if found[method]):
        rows = [
            (*at, name, 100 * share, 100 * floors[method][at][name])
            for at, layers in sorted(found[method].items())
            for name, share in layers.items()
        ]
        chart = figure(
            layer_map(found[method], floors[method]), f"similarity {method}", _HEADS, rows
        )
        drawn.append((method, Markup(chart)))
    return drawn


def layer_map(
    cells: Mapping[tuple[int, int], Layers], floors: Mapping[tuple[int, int], Layers]
) -> str:
    """An SVG: across the layers, down the steps after those that learned some classes.

    `cells` by (step that learned the classes, later step), a share for each layer, deepest colour
    for 1. `floors` are those of unrelated features, which are told when a cell is pointed at.
    """
    layers = list(dict.fromkeys(name for own in cells.values() for name in own))
    tasks = sorted({task for task, _ in cells})
    if len(tasks) > _TASKS:
        tasks = [tasks[round(n * (len(tasks) - 1) / (_TASKS - 1))] for n in range(_TASKS)]
    rows = {task: sorted(step for own, step in cells if own == task) for task in tasks}
    count = sum(map(len, rows.values()))
    pitch = _TALL if count <= _WRITTEN else _SMALL
    width = _LEFT + _WIDTH * len(layers) + 6
    height = _TOP + count * pitch + len(tasks) * _GAP - (_GAP - _HEAD) + 4
    parts = [f'<svg class="layers" viewBox="0 0 {width} {height}" role="img" aria-label="layers">']
    for number, name in enumerate(layers):
        at = _LEFT + (number + 0.5) * _WIDTH
        parts.append(_text(at, 18, "middle", name))
    y = _TOP
    for task, steps in rows.items():
        parts.append(_text(2, y + 6, "start", f"classes of step {task}"))
        y += _HEAD
        for step in steps:
            parts.append(_text(_LEFT - 8, y + pitch / 2 + 4, "end", f"step {step}"))
            for number, name in enumerate(layers):
                if name in cells[task, step]:
                    what = f"{name}, classes of step {task} after step {step}"
                    found, floor = cells[task, step][name], floors[task, step][name]
                    told = f"{what}: {100 * found:.1f} %; unrelated features: {100 * floor:.0f} %"
                    x = _LEFT + number * _WIDTH
                    parts.append(_cell(x, y, pitch, found, told, count <= _WRITTEN))
            y += pitch
        y += _GAP - _HEAD
    return "".join([*parts, "</svg>"])


def _cell(x: float, y: float, pitch: float, share: float, told: str, written: bool) -> str:
    gap = 1.5 if written else 0.75
    # squared: of what networks have in common, most is at the upper end
    rect = (
        f'<rect class="cell" x="{x + gap}" y="{y + gap}" width="{_WIDTH - 2 * gap}" '
        f'height="{pitch - 2 * gap}" rx="3" style="fill-opacity:{0.06 + 0.64 * share**2:.3f}">'
        f"<title>{escape(told)}</title></rect>"
    )
    if not written:
        return rect
    middle = x + _WIDTH / 2, y + pitch / 2 + 5
    return (
        f'{rect}<text class="value" x="{middle[0]}" y="{middle[1]}" text-anchor="middle">'
        f"{100 * share:.0f}</text>"
    )


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
