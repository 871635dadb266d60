"""Draws a run's report.html from the files of its folder: one page that needs nothing else."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from monitoring.charts import Line, Span, line_chart, timeline
from monitoring.compatibility import (
    SUMMARY_HEADS,
    by_point,
    comparisons,
    in_words,
    summary,
    summary_cells,
)
from monitoring.compatibility_charts import backfill_charts, flip_rows, gain_charts, matrices
from monitoring.curves import tradeoffs
from monitoring.goodput import USES, goodput, summary_line
from monitoring.results import (
    LOWER_IS_BETTER,
    compare,
    evaluations,
    metrics,
    ordered_methods,
    read_jsonl,
)
from untrusted.yaml_text import read_yaml

_PHASE_COLOURS = {
    "adopt": 0,
    "train": 0,
    "neighbours": 1,
    "evaluate": 2,
    "prototypes": 3,
    "compatibility": 4,
}


def draw(folder: Path) -> Path:
    """Writes ``report.html`` into a run folder and returns its path.

    Parts that the run has not reached yet are left out.
    """
    rows = compare([folder])
    methods = [method for _, method in ordered_methods(rows)][::-1]
    colours = {method: number % 10 for number, method in enumerate(sorted(methods))}
    config = read_yaml(folder / "run.yaml")
    ledger = read_jsonl(folder / "ledger.jsonl")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape()
    )
    page = environment.get_template("report.html").render(
        name=folder.name,
        methods=methods,
        colours=colours,
        config=config,
        config_text=(folder / "run.yaml").read_text(encoding="utf-8"),
        seeds=len(config["seeds"]),
        steps=sorted({row["step"] for row in rows}),
        tables=_tables(rows, methods),
        curves=[(title, Markup(chart)) for title, chart in _curves(rows, methods, colours)],
        tradeoffs=[
            {"name": name, "charts": [(title, Markup(chart)) for title, chart in charts.items()]}
            for name, charts in tradeoffs(evaluations(folder), methods, colours).items()
        ],
        compatibility=_compatibility(folder, colours),
        losses=[(title, Markup(chart)) for title, chart in _losses(folder, colours)],
        timeline=Markup(timeline(_spans(ledger))),
        goodput=_goodput(folder),
        hours=sum(r["finished"] - r["started"] for r in ledger) / 3600,
        examples=_examples(folder, methods, "examples.json"),
        neighbourhoods=_examples(folder, methods, "neighbour_examples.json"),
    )
    part = folder / ".report.html.part"
    part.write_text(page, encoding="utf-8")
    part.rename(folder / "report.html")
    return folder / "report.html"


def _tables(rows: list[dict[str, Any]], methods: list[str]) -> list[dict[str, Any]]:
    """For each metric, a row a method with its cells by step and whether each is the best."""
    found = {(row["method"], row["step"]): row for row in rows}
    steps = sorted({row["step"] for row in rows})
    tables = []
    for metric, title in metrics(rows).items():
        known = [row for row in rows if metric in row]
        choose = min if metric in LOWER_IS_BETTER else max
        best = {
            step: choose((r[metric]["mean"] for r in known if r["step"] == step), default=0.0)
            for step in steps
        }
        lines = []
        for method in methods:
            cells = []
            for step in steps:
                row = found.get((method, step))
                value = row.get(metric) if row else None
                cells.append({"value": value, "best": bool(value and value["mean"] == best[step])})
            lines.append({"method": method, "cells": cells})
        tables.append({"title": title, "lines": lines})
    return tables


def _curves(
    rows: list[dict[str, Any]], methods: list[str], colours: dict[str, int]
) -> list[tuple[str, str]]:
    """A chart a metric: accuracy over learning steps, with a band of one standard deviation."""
    charts = []
    for metric, title in metrics(rows).items():
        lines = []
        for method in methods:
            own = [r for r in rows if r["method"] == method and metric in r]
            own.sort(key=lambda r: r["step"])
            points = [(float(r["step"]), 100 * r[metric]["mean"]) for r in own]
            band = [100 * r[metric]["std"] for r in own]
            lines.append(Line(method, colours[method], points, band))
        charts.append((title, line_chart(lines, "learning step", f"{title}, %", whole_x=True)))
    return charts


def _compatibility(folder: Path, colours: dict[str, int]) -> dict[str, Any] | None:
    """The page's part on compatibility; none where the run does not compare its models."""
    found = comparisons(folder)
    if not found:
        return None
    charts = {
        "matrices": matrices(found),
        "gains": gain_charts(found, colours),
        "backfill": backfill_charts(found),
    }
    return {
        "heads": SUMMARY_HEADS,
        "tables": [
            (in_words(point), [summary_cells(row) for row in rows])
            for point, rows in by_point(summary([folder])).items()
        ],
        "confidence": found[0]["confidence"],
        "flips": flip_rows(found),
        **{key: [(name, Markup(svg)) for name, svg in drawn] for key, drawn in charts.items()},
    }


def _losses(folder: Path, colours: dict[str, int]) -> list[tuple[str, str]]:
    """The training loss and the throughput of each method's first seed, step after step."""
    records = {}
    for record in read_jsonl(folder / "metrics.jsonl"):
        records[record["phase"], record["iteration"]] = record
    of_method: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for (phase, iteration), record in records.items():
        method, _, step, _ = phase.split("/")
        of_method.setdefault(method, {}).setdefault(
            (int(step.removeprefix("step-")), iteration), record
        )
    charts = []
    for key, title in (("classify", "Classification loss"), ("images_per_second", "Images/s")):
        lines = []
        for method, found in of_method.items():
            points = []
            for (step, iteration), record in sorted(found.items()):
                if key in record:
                    points.append((step + iteration / record["of"], float(record[key])))
            lines.append(Line(method, colours.get(method, 0), points))
        charts.append((title, line_chart(lines, "learning step", title, points=False)))
    return [(title, chart) for title, chart in charts if chart]


def _spans(ledger: list[dict[str, Any]]) -> list[Span]:
    return [
        Span(
            f"{record['method']}, seed {record['seed']}",
            record["phase"],
            _PHASE_COLOURS[record["kind"]],
            record["started"],
            record["finished"],
        )
        for record in ledger
    ]


def _goodput(folder: Path) -> dict[str, Any] | None:
    """The page's part on where the time went."""
    found = goodput(folder)
    if found is None:
        return None
    shares = {use: seconds / (found.total or 1) for use, seconds in found.seconds.items()}
    return {
        "words": f"G{summary_line(found)[1:]}",
        "uses": [(USES[use], found.seconds[use] / 3600, share) for use, share in shares.items()],
        "allocated": found.allocated,
    }


def _examples(folder: Path, methods: list[str], name: str) -> list[dict[str, Any]]:
    """The pictures that each method left under `name` in its newest step, first seed found."""
    shown = []
    for method in methods:
        files = sorted(
            (folder / "chains" / method).glob(f"seed-*/steps/*/{name}"),
            key=lambda path: (-int(path.parent.name), path.parts),
        )
        if files:
            queries = json.loads(files[0].read_text(encoding="utf-8"))
            shown.append({"method": method, "step": files[0].parent.name, "queries": queries})
    return shown
