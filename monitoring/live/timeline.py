"""When phases were at work: spans on an axis from 0 to 1 that leaves out idle nights."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

_BREAK = 0.03
"""How long a pause is drawn at most, as a share of all time at work."""


def layout(spans: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`spans` (with `chain`, `start` and `end` in seconds) by chain, with places `from` and `to`.

    Pauses longer than three hundredths of the time at work are drawn so long, and listed.
    """
    if not spans:
        return {"rows": [], "pauses": [], "start": None, "end": None}
    busy = _merged(sorted((s["start"], s["end"]) for s in spans))
    work = max(sum(end - start for start, end in busy), 1e-9)
    places, pauses, at = [], [], 0.0
    for (start, end), after in zip(busy, [*(b[0] for b in busy[1:]), None], strict=True):
        places.append((start, at))
        at += end - start
        if after is not None:
            drawn = min(after - end, _BREAK * work)
            if drawn < after - end:
                pauses.append((at, at + drawn, after - end))
            at += drawn

    starts = [start for start, _ in places]

    def place(moment: float) -> float:
        start, begin = places[bisect_right(starts, moment) - 1]
        return (begin + (moment - start)) / max(at, 1e-9)

    rows: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        placed = {**span, "from": place(span["start"]), "to": place(span["end"])}
        rows.setdefault(span["chain"], []).append(placed)
    return {
        "rows": [{"chain": chain, "spans": own} for chain, own in rows.items()],
        "pauses": [{"from": a / at, "to": b / at, "seconds": s} for a, b, s in pauses],
        "start": busy[0][0],
        "end": busy[-1][1],
    }


def _merged(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for start, end in intervals:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged
