"""What a run found of compatibility between its models, as tables and charts."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

TITLES = {"top1": "top-1", "map": "mAP", "tar": "TAR at FAR", "tpir": "TPIR at FPIR"}
_FIGURES = ("old_old", "new_old", "new_new", "paragon")


def title(point: str) -> str:
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
    yield f"queries by {found['new']}, gallery by {found['old']}, in %:"
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    shown = [key for key in _FIGURES if key in found["points"][0]]
    for head in (*(key.replace("_", "/") for key in shown), "gain"):
        table.add_column(head, justify="right", no_wrap=True)
    if "paragon" in shown:
        table.add_column("update gain", justify="right", no_wrap=True)
    table.add_column("holds")
    for point in found["points"]:
        verdict = "[green]yes[/]" if point["holds"] else "[red]no[/]"
        cells = [*(_percent(point[key]) for key in shown), _interval(point["gain"])]
        cells += [_interval(point["update_gain"])] if "paragon" in shown else []
        table.add_row(point["point"], *cells, verdict)
    yield table
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
        yield f"worst: {', '.join(named)}"
