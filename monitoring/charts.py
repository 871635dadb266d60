"""Line charts and timelines as inline SVG, coloured by CSS variables to follow the theme."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from monitoring.chart_data import figure

WIDTH, HEIGHT = 420, 270
_RIGHT, _TOP, _BOTTOM = 18, 12, 42
_LETTER = 7.6
"""Width of a character of a label, at most, at the size that phones show it in."""
_COLOURS = 10
"""CSS variables --c0, --c1, ... that can be told apart in one chart."""
_BOUNDS = 30
"""Learning steps between which a chart of their training has lines, at most."""
_DASHES = ("", "7 4", "2 3", "9 3 2 3")
"""Where colours come again, lines are drawn in other ways, and points as other shapes."""
_SHAPES = (
    "M-3.4,0a3.4,3.4 0 1,0 6.8,0a3.4,3.4 0 1,0 -6.8,0Z",  # a disc
    "M-3.2,-3.2H3.2V3.2H-3.2Z",
    "M0,-4.4L4,3H-4Z",
    "M0,-4.6L4.6,0L0,4.6L-4.6,0Z",
)


@dataclass(frozen=True)
class Line:
    """One line: points in order, and half the height of a band around each."""

    name: str
    look: int
    """Lines of different numbers look different, as long as there are no more than 40."""
    points: Sequence[tuple[float, float]]
    band: Sequence[float] = ()


def colour_of(look: int) -> str:
    """The colour of a line or mark with this number, in CSS."""
    return f"var(--c{look % _COLOURS})"


def legend_mark(look: int) -> str:
    """A small SVG for legends: a piece of a line with this number, and its point."""
    dash = _dash(look)
    return (
        '<svg class="look" viewBox="0 0 30 12" aria-hidden="true">'
        f'<line x1="0" x2="30" y1="6" y2="6" stroke="{colour_of(look)}" stroke-width="2.2"{dash}/>'
        f"{_point(look, 15, 6)}/></svg>"
    )


def _dash(look: int) -> str:
    dash = _DASHES[look // _COLOURS % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _point(look: int, x: float, y: float) -> str:
    """The beginning of its element."""
    shape = _SHAPES[look // _COLOURS % len(_SHAPES)]
    return f'<path transform="translate({x:.1f},{y:.1f})" d="{shape}" fill="{colour_of(look)}"'


def _alike(low: float, high: float) -> bool:
    """Whether an axis of these ends would show rounding alone."""
    return high - low < 1e-9 * max(1.0, abs(low))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that cover [low, high], about `count` of them."""
    if _alike(low, high):
        apart = 0.5 * max(1.0, 1e-9 * abs(low))
        low, high = low - apart, high + apart
    rough = (high - low) / max(1, count - 1)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 10) for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """The values 1, 2 and 5 times a power of ten that cover [low, high], or every power of ten
    where there are three or more between them. `low` is above 0."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if len(powers) > 3:
        return [10.0**power for power in powers]
    every = [m * 10.0**power for power in powers for m in (1, 2, 5)]
    first = max((tick for tick in every if tick <= low * 1.001), default=every[0])
    last = min((tick for tick in every if tick >= high * 0.999), default=every[-1])
    return [tick for tick in every if first <= tick <= last]


def _limits(
    low: float, high: float, found: Sequence[float], within: tuple[float, float]
) -> tuple[float, float]:
    """The ends of an axis for values in [low, high], whose ticks `found` cover them.

    Just beyond the values: up to the next tick there might be nothing for half of the chart, such
    as shares below 0. Not beyond `within`, such as 100 %, unless values are.
    """
    room = 0.03 * (high - low)
    ends = found[0], found[-1]
    if not _alike(low, high):
        ends = max(found[0], low - room), min(found[-1], high + room)
    return max(ends[0], min(low, within[0])), min(ends[1], max(high, within[1]))


def margin_of(labels: Sequence[str]) -> float:
    """The room that labels need at the left of a chart."""
    return 14 + _LETTER * max(map(len, labels), default=0)


def _apart(labels: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Those of the labels (their middle, text), from the left, that overlap none before them."""
    shown: list[tuple[float, str]] = []
    end = -math.inf
    for middle, text in labels:
        half = _LETTER * len(text) / 2
        if middle - half > end:
            shown.append((middle, text))
            end = middle + half + 4
    return shown


def _same(value: float) -> float:
    return value


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    whole_x: bool = False,
    points: bool = True,
    log_x: bool = False,
    log_y: bool = False,
    within: tuple[float, float] = (-math.inf, math.inf),
    spans: bool = False,
) -> str:
    """A figure of `lines` with axes and their data as CSV; hovering a point or line names it.

    On a logarithmic axis, points at or below 0 are left out. The y axis and bands end where
    `within` does, such as 0 and 100 for shares in percent. With `spans`, x from n to n + 1 is what
    happens during n, which is written in its middle.
    """
    if log_x or log_y:
        shown = [[(x, y) for x, y in n.points if x > 0 or not log_x] for n in lines]
        shown = [[(x, y) for x, y in own if y > 0 or not log_y] for own in shown]
        lines = [Line(n.name, n.look, own) for n, own in zip(lines, shown, strict=True)]
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ends = [_ends(line, within) for line in lines]
    lows = [low for own in ends for low, _ in own]
    highs = [high for own in ends for _, high in own]
    y_ticks = log_ticks(min(lows), max(highs)) if log_y else ticks(min(lows), max(highs), 6)
    along, upward = math.log10 if log_x else _same, math.log10 if log_y else _same
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    if spans:
        x_low, x_high = math.floor(x_low), max(math.ceil(x_high), math.floor(x_low) + 1)
    y_low, y_high = y_ticks[0], y_ticks[-1]
    if not log_y:
        y_low, y_high = _limits(min(lows), max(highs), y_ticks, within)
    y_high = max(y_high, y_low + 1e-9)
    y_ticks = [y for y in y_ticks if y_low <= y <= y_high]
    left = margin_of([f"{y:g}" for y in y_ticks])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (along(x) - along(x_low)) / (along(x_high) - along(x_low))
        up = (upward(y) - upward(y_low)) / (upward(y_high) - upward(y_low))
        return (
            left + across * (WIDTH - left - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)}">']
    for y in y_ticks:
        _, v = at(x_low, y)
        parts.append(
            f'<line class="grid" x1="{left:.1f}" x2="{WIDTH - _RIGHT}" y1="{v:.1f}" y2="{v:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{left - 8:.1f}" y="{v + 4:.1f}" text-anchor="end">{y:g}</text>'
        )
    if spans:
        x_ticks = [float(x) for x in range(int(x_low), int(x_high))]
        bounds = [at(x, y_low)[0] for x in x_ticks[1:]] if len(x_ticks) <= _BOUNDS else []
        parts += [
            f'<line class="grid" x1="{u:.1f}" x2="{u:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
            for u in bounds
        ]
    elif whole_x:
        x_ticks = sorted(set(xs))
    else:
        x_ticks = log_ticks(min(xs), max(xs)) if log_x else ticks(min(xs), max(xs), 6)
    middles = [(at(x + 0.5 * spans, y_low)[0], f"{x:g}") for x in x_ticks if x_low <= x <= x_high]
    parts += [
        f'<text class="tick" x="{u:.1f}" y="{HEIGHT - 25}" text-anchor="middle">{text}</text>'
        for u, text in _apart(middles)
    ]
    middle = (left + WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    for line, own in zip(lines, ends, strict=True):
        parts.append(_drawn(line, own, at, points))
    rows = [
        (line.name, x, y, b)
        for line in lines
        for (x, y), b in zip(line.points, _bands(line), strict=True)
    ]
    heads = ("line", x_label, y_label, "half of the band")
    return figure("".join([*parts, "</svg>"]), y_label, heads, rows)


def _bands(line: Line) -> Sequence[float]:
    return line.band or [0.0] * len(line.points)


def _ends(line: Line, within: tuple[float, float]) -> list[tuple[float, float]]:
    """The ends of the band around each point; a point beyond `within` is in its band, too."""
    return [
        (min(y, max(y - b, within[0])), max(y, min(y + b, within[1])))
        for (_, y), b in zip(line.points, _bands(line), strict=True)
    ]


def _drawn(
    line: Line,
    ends: Sequence[tuple[float, float]],
    place: Callable[[float, float], Any],
    points: bool,
) -> str:
    colour, out = colour_of(line.look), ""
    if any(line.band):
        upper = [place(x, high) for (x, _), (_, high) in zip(line.points, ends, strict=True)]
        lower = [place(x, low) for (x, _), (low, _) in zip(line.points, ends, strict=True)]
        area = " ".join(f"{u:.1f},{v:.1f}" for u, v in upper + lower[::-1])
        out += f'<polygon points="{area}" fill="{colour}" opacity="0.15"/>'
    path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line.points)
    width = 2.2 if points else 1.4
    out += (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"'
        f'{_dash(line.look)} stroke-linejoin="round"><title>{escape(line.name)}</title></polyline>'
    )
    for (x, y), b in zip(line.points, _bands(line), strict=True) if points else ():
        u, v = place(x, y)
        spread = f" ± {b:.2f}" if b else ""
        out += (
            f"{_point(line.look, u, v)}><title>"
            f"{escape(line.name)}, {x:g}: {y:.2f}{spread}</title></path>"
        )
    return out


@dataclass(frozen=True)
class Span:
    """A bar of a timeline."""

    row: str
    name: str
    colour: int
    start: float
    """Seconds."""
    end: float


def timeline(spans: Sequence[Span]) -> str:
    """A figure with a row for each `row` and a bar for each span, over minutes."""
    if not spans:
        return ""
    rows: dict[str, list[Span]] = {}
    for span in spans:
        rows.setdefault(span.row, []).append(span)
    left, pitch, width = margin_of(list(rows)), 22, 1080
    left = min(left, width / 2)
    height = pitch * len(rows) + 36
    start, end = min(s.start for s in spans), max(s.end for s in spans)
    scale = (width - left - 16) / max(end - start, 1e-9)
    parts = [f'<svg class="long" viewBox="0 0 {width} {height}" role="img" aria-label="timeline">']
    for minute in ticks(0, (end - start) / 60, 8):
        u = left + minute * 60 * scale
        if u > width - 16:
            continue
        parts.append(f'<line class="grid" x1="{u:.1f}" x2="{u:.1f}" y1="0" y2="{height - 30}"/>')
        anchor = "end" if u > width - 60 else "middle"
        parts.append(
            f'<text class="tick" x="{u:.1f}" y="{height - 14}" text-anchor="{anchor}">'
            f"{minute:g} min</text>"
        )
    for number, (row, own) in enumerate(rows.items()):
        v = number * pitch + 4
        parts.append(
            f'<text class="tick" x="{left - 8:.1f}" y="{v + 12}" text-anchor="end">'
            f"{escape(row)}</text>"
        )
        for span in own:
            u, w = left + (span.start - start) * scale, max(1.5, (span.end - span.start) * scale)
            parts.append(
                f'<rect x="{u:.1f}" y="{v}" width="{w:.1f}" height="{pitch - 8}" rx="2" '
                f'fill="var(--c{span.colour})"><title>{escape(span.name)}: '
                f"{span.end - span.start:.1f} s</title></rect>"
            )
    told = [(one.row, one.name, one.start, one.end) for one in spans]
    heads = ("chain", "phase", "started, seconds", "finished, seconds")
    return figure("".join([*parts, "</svg>"]), "phases", heads, told)
