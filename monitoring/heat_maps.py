"""Heat maps over two learning steps as inline SVG, coloured by CSS to follow the theme."""

from collections.abc import Mapping
from dataclasses import dataclass

from monitoring.chart_data import figure

_MARGIN, _WRITTEN = 56, 13
_SIDES = {6: 64, _WRITTEN: 44}
"""Side of a cell by the most learning steps that it is for; more have cells without numbers."""
_SMALL = 16


@dataclass(frozen=True)
class Axes:
    """What the two learning steps of a cell are."""

    row: str
    column: str


def heat_map(
    cells: Mapping[tuple[int, int], float],
    axes: Axes,
    holds: Mapping[tuple[int, int], bool] | None = None,
    scale: tuple[float, float] | None = None,
) -> str:
    """A figure of shares by (row: a learning step, column: a learning step), in percent.

    The deepest colour is for the last value of `scale`, the palest for the first; none: for the
    largest and smallest of `cells`. Cells in `holds` have a green frame and a tick where it is
    true, a red, dashed one and a cross where not.
    """
    size = 1 + max(max(cell) for cell in cells)
    low, high = scale or (min(cells.values()), max(cells.values()))
    pitch = next((side for most, side in _SIDES.items() if size <= most), _SMALL)
    side = _MARGIN + size * pitch + 8
    parts = [f'<svg class="heat" viewBox="0 0 {side} {side}" role="img" aria-label="matrix">']
    for step in range(0, size, 1 if size <= _WRITTEN else 5):
        at = _MARGIN + (step + 0.5) * pitch
        parts.append(
            f'<text class="tick" x="{at}" y="{_MARGIN - 8}" text-anchor="middle">{step}</text>'
            f'<text class="tick" x="{_MARGIN - 8}" y="{at + 4}" text-anchor="end">{step}</text>'
        )
    middle = _MARGIN + size * pitch / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="18" text-anchor="middle">{axes.column}</text>'
        f'<text class="tick" transform="translate(14 {middle}) rotate(-90)" '
        f'text-anchor="middle">{axes.row}</text>'
    )
    for (row, column), value in sorted(cells.items()):
        strength = (value - low) / max(high - low, 1e-9)
        x, y = _MARGIN + column * pitch, _MARGIN + row * pitch
        frame, verdict = "", ""
        if holds is not None and (row, column) in holds:
            frame = "holds" if holds[row, column] else "fails"
            verdict = f", the criterion {'holds' if frame == 'holds' else 'does not hold'}"
        gap = 3 if pitch > _SMALL else 1
        parts.append(
            f'<rect class="cell {frame}" x="{x + gap}" y="{y + gap}" width="{pitch - 2 * gap}" '
            f'height="{pitch - 2 * gap}" rx="{gap + 2}" '
            f'style="fill-opacity:{0.08 + 0.62 * strength:.3f}"><title>'
            f"{axes.row} {row}, {axes.column} {column}: {100 * value:.2f} %{verdict}"
            "</title></rect>"
        )
        if size <= _WRITTEN:
            digits = 1 if pitch == _SIDES[6] else 0
            if frame:
                mark = "✓" if frame == "holds" else "✗"
                parts.append(
                    f'<text class="mark {frame}" x="{x + pitch - gap - 4}" y="{y + gap + 13}" '
                    f'text-anchor="end">{mark}</text>'
                )
            parts.append(
                f'<text class="value" x="{x + pitch / 2}" y="{y + pitch / 2 + 5}" '
                f'text-anchor="middle">{100 * value:.{digits}f}</text>'
            )
    rows = [(row, column, 100 * value) for (row, column), value in sorted(cells.items())]
    heads = (axes.row, axes.column, "%")
    return figure("".join([*parts, "</svg>"]), f"{axes.row} {axes.column}", heads, rows)
