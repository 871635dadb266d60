"""What a run found of compatibility between its models: read from its files, as tables."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from monitoring.records import Damage, comparisons
from monitoring.results import SPREAD
from untrusted.text import printable

TITLES = {"top1": "top-1", "map": "mAP", "tar": "TAR at FAR", "tpir": "TPIR at FPIR"}
_FIGURES = ("old_old", "new_old", "new_new", "paragon")


def in_words(point: str) -> str:
    """An operating point in words: "TAR at FAR 1e-3" for tar@1e-3."""
    kind, _, rate = point.partition("@")
    return f"{TITLES[kind]} {rate}".strip()


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _interval(value: dict[str, float] | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value['value']:+.1f} ({100 * value['low']:.1f}…{100 * value['high']:.1f})"


def comparison_tables(found: dict[str, Any]) -> Iterator[Any]:
    """A comparison of two models for the terminal: figures, gains, verdict, flips."""
    yield Text(printable(f"queries by {found['new']}, gallery by {found['old']}, in %:"))
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    shown = [key for key in _FIGURES if key in found["points"][0]]
    for key in shown:
        table.add_column(key.replace("_", "/"), justify="right", no_wrap=True)
    for head in ("gain", "update gain") if "paragon" in shown else ("gain",):
        table.add_column(head, justify="right")  # where there is little room, these wrap
    table.add_column("holds", no_wrap=True)
    for point in found["points"]:
        verdict = Text("yes", "green") if point["holds"] else Text("no", "red")
        cells: list[str] = [*(_percent(point[key]) for key in shown), _interval(point["gain"])]
        cells += [_interval(point["update_gain"])] if "paragon" in shown else []
        table.add_row(point["point"], *cells, verdict)
    yield table
    yield from (f"left out: {why}" for why in found.get("left_out", ()))
    yield (
        f"{found['queries']:,} queries ({found['queries_without_match']:,} without a match) in a "
        f"gallery of {found['gallery']:,}; {found['pairs']:,} pairs"
    )
    yield (
        f"confidence {found['confidence']:.0%}, by {found['resamples']:,} resamples of "
        f"{found['identities']:,} query identities"
    )
    flips = found["flips"]
    yield (
        f"negative flips: {flips['negative']:,} of {flips['right_before']:,} trials that were "
        f"right ({flips['positive']:,} the other way); {flips['worse']:,} of "
        f"{flips['identities']:,} identities get worse"
    )
    if flips["worst"]:
        named = [
            f"{one['identity']} ({one['lost']} of {one['trials']})" for one in flips["worst"][:8]
        ]
        yield Text(printable(f"worst: {', '.join(named)}"))


def summary(folders: Iterable[Path], damage: Damage | None = None) -> list[dict[str, Any]]:
    """Each method's figures against the step before and the first step, by operating point.

    Figures are {mean, std} over seeds, as shares; ``holds`` counts the seeds where the criterion
    does.
    """
    groups: dict[tuple[str, str, int, int, str], list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        for found in comparisons(folder, damage):
            if found["against"] in (0, found["step"] - 1):
                where = folder.name, found["method"], found["step"], found["against"]
                for point in found["points"]:
                    groups[*where, point["point"]].append(point)
    rows = []
    for (run, method, step, against, point), every in groups.items():
        row: dict[str, Any] = {"run": run, "method": method, "step": step, "against": against}
        row |= {"point": point, "seeds": len(every), "holds": sum(p["holds"] for p in every)}
        for key in (key for key in _FIGURES if any(key in point for point in every)):
            row[key] = _over_seeds([p[key] for p in every if key in p])
        row["gain"] = _over_seeds([p["gain"]["value"] for p in every])
        updates = [p["update_gain"]["value"] for p in every if p["update_gain"]]
        row["update_gain"] = _over_seeds(updates) if len(updates) == len(every) else None
        rows.append(row)
    return rows


def _over_seeds(values: list[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation}


def summary_cells(row: dict[str, Any]) -> list[str]:
    """A row of `summary` in words, under `SUMMARY_HEADS`."""

    def cell(key: str) -> str:
        if (value := row.get(key)) is None:
            return "–"
        sign = "+" if "gain" in key else ""
        mean = f"{100 * value['mean']:{sign}.1f}"
        return f"{mean} ± {100 * value['std']:.1f}" if row["seeds"] > 1 else mean

    seeds = f"{row['holds']} of {row['seeds']}" if row["seeds"] > 1 else ""
    holds = seeds or ("yes" if row["holds"] else "no")
    return [
        row["method"],
        f"{row['step']} on {row['against']}",
        *map(cell, (*_FIGURES, "gain", "update_gain")),
        holds,
    ]


SUMMARY_HEADS = (
    *("method", "steps", "old/old", "new/old", "new/new", "paragon"),
    *("gain", "update gain", "holds"),
)


def by_point(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of `summary` by operating point."""
    points = dict.fromkeys(row["point"] for row in rows)
    return {point: [row for row in rows if row["point"] == point] for point in points}


def summary_tables(rows: list[dict[str, Any]]) -> Iterator[Table]:
    """`summary` for the terminal, a table an operating point."""
    several_runs = len({row["run"] for row in rows}) > 1
    for point, own in by_point(rows).items():
        table = Table(
            title=f"{in_words(point)}, new queries on an old gallery (%)",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            caption=SPREAD if any(row["seeds"] > 1 for row in own) else None,
            caption_justify="left",
        )
        for number, head in enumerate(SUMMARY_HEADS):
            table.add_column(head, justify="left" if number < 2 else "right", no_wrap=number < 2)
        for row in own:
            method, *cells = summary_cells(row)
            table.add_row(
                Text(printable(f"{row['run']}: {method}" if several_runs else method)), *cells
            )
        yield table
