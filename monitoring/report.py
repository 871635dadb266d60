"""Draws a run's report.html from the files of its folder: one page that needs nothing else."""

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from markupsafe import Markup

from monitoring.additions import addition_charts
from monitoring.against import setting_charts
from monitoring.analyses import similarities
from monitoring.attention import attention_sheets, attentions
from monitoring.charts import Line, Span, legend_mark, line_chart, timeline
from monitoring.compatibility import (
    SUMMARY_HEADS,
    by_point,
    in_words,
    summary,
    summary_cells,
)
from monitoring.compatibility_charts import backfill_charts, flip_rows, gain_charts, matrices
from monitoring.curves import tradeoffs
from monitoring.error_split import error_split, split_charts
from monitoring.feature_plots import (
    feature_plots,
    features,
    features_over_steps,
    step_plots,
)
from monitoring.goodput import USES, goodput, summary_line
from monitoring.incremental_charts import class_incremental
from monitoring.live.extent import Damaged, extent
from monitoring.records import (
    Damage,
    MainTrainings,
    comparisons,
    evaluations,
    examples,
    ledger,
    step_files,
    told,
)
from monitoring.records import metrics as training
from monitoring.results import (
    LOWER_IS_BETTER,
    compare,
    counted,
    interval,
    metrics,
    ordered_methods,
)
from monitoring.run_folder import EXAMPLES_FILE, LEDGER_FILE, NEIGHBOUR_EXAMPLES_FILE, REPORT_FILE
from monitoring.schemas import phase_of
from monitoring.similarity_maps import similarity_maps
from untrusted.errors import InputError
from untrusted.text import printable

_KINDS = 20
"""Kinds of phases with a colour of their own, at most: a stranger's ledger may name any number."""
_CHAINS = 500
"""Rows of the timeline, and lines of a chart, at most."""
_PICTURES = 1 << 28
"""Bytes of pictures in a page, at most."""
_DRAWABLE = 1e30


def draw(folder: Path, damage: Damage | None = None) -> Path:
    """Writes ``report.html`` into a run folder and returns its path.

    Parts that the run has not reached yet are left out, and what is `damage`d: the page says so.
    Raises InputError.
    """
    damage = {} if damage is None else damage
    try:
        asked = extent(folder.resolve(), folder)
    except Damaged as error:
        raise InputError(f"{folder}: {error}: restore it from a copy") from error
    rows = compare([folder], damage)
    methods = [method for _, method in ordered_methods(rows)]
    # a method looks the same before the others have finished anything, and on the live page
    looks = {m: n for n, m in enumerate(dict.fromkeys([*asked.methods, *methods]))}
    done = ledger(folder, damage)
    kinds = {kind: n for n, kind in enumerate(dict.fromkeys(r["kind"] for r in done))}
    spans = _spans(done, kinds, damage)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape()
    )
    page = environment.get_template("report.html").render(
        name=folder.name,
        methods=methods,
        legend=[(method, Markup(legend_mark(looks[method]))) for method in methods],
        config=asked,
        config_text=printable(asked.text, keep="\n"),
        seeds=len(asked.seeds),
        steps=sorted({row["step"] for row in rows}),
        tables=_tables(rows, methods),
        curves=[(title, Markup(chart)) for title, chart in _curves(rows, methods, looks)],
        settings=setting_charts(rows, asked.settings),
        additions=addition_charts(folder, rows, asked.settings, looks, damage),
        tradeoffs=[
            {"name": name, "charts": [(title, Markup(chart)) for title, chart in charts.items()]}
            for name, charts in tradeoffs(evaluations(folder, damage), methods, looks).items()
        ],
        incremental=class_incremental(folder, rows, methods, _PICTURES, damage),
        errors=_errors(folder, methods, looks, damage),
        similarity=similarity_maps(similarities(folder, damage), methods),
        planes=feature_plots(features(folder, damage)),
        over_steps=step_plots(features_over_steps(folder, damage), methods),
        attention=attention_sheets(attentions(folder, damage), _PICTURES, damage),
        compatibility=_compatibility(folder, looks, damage),
        losses=[(title, Markup(chart)) for title, chart in _losses(folder, looks, damage)],
        timeline=Markup(timeline(spans)),
        kinds={kind: colour for kind, colour in kinds.items() if colour < _KINDS},
        more_kinds=max(0, len(kinds) - _KINDS),
        goodput=_goodput(folder, damage),
        hours=sum(r["finished"] - r["started"] for r in done) / 3600,
        examples=_examples(folder, methods, EXAMPLES_FILE, damage),
        neighbourhoods=_examples(folder, methods, NEIGHBOUR_EXAMPLES_FILE, damage),
        damage=list(told(damage)),
    )
    part, target = folder / f".{REPORT_FILE}.part", folder / REPORT_FILE
    try:
        part.unlink(missing_ok=True)  # a link there would lead the page elsewhere
        part.write_text(page, encoding="utf-8")
        part.rename(target)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


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
            cells = [_cell(metric, found.get((method, step), {}), best[step]) for step in steps]
            lines.append({"method": method, "cells": cells})
        tables.append({"title": title, "lines": lines, "of": counted(rows, metric)})
    return tables


def _cell(metric: str, row: dict[str, Any], best: float) -> dict[str, Any]:
    """A cell of a table: percents as text, and whether it is the best of its step."""
    value = row.get(metric)
    if not value:
        return {}
    seeds, limits = row["seeds"], interval(metric, value, row["seeds"])
    return {
        "mean": f"{100 * value['mean']:.1f}",
        "spread": f"± {100 * value['std']:.1f}" if seeds > 1 else "",
        "interval": "{:.1f} … {:.1f}".format(*(100 * end for end in limits)) if limits else "",
        "best": value["mean"] == best,
    }


def _curves(
    rows: list[dict[str, Any]], methods: list[str], looks: dict[str, int]
) -> list[tuple[str, str]]:
    """A chart a metric: accuracy over learning steps, with the mean's 95 % interval as a band."""
    charts = []
    for metric, title in metrics(rows).items():
        lines = []
        for method in methods:
            own = [r for r in rows if r["method"] == method and metric in r]
            own.sort(key=lambda r: r["step"])
            points = [(float(r["step"]), 100 * r[metric]["mean"]) for r in own]
            band = [100 * r[metric]["half_width"] for r in own]
            lines.append(Line(method, looks[method], points, band))
        chart = line_chart(
            lines, "after learning step", f"{title}, %", whole_x=True, within=(0, 100)
        )
        charts.append((f"{title}, %{counted(rows, metric)}", chart))
    return charts


def _errors(
    folder: Path, methods: list[str], looks: dict[str, int], damage: Damage
) -> dict[str, Any] | None:
    """The page's part on confusion and forgetting; none where errors were not counted."""
    found = error_split(folder, damage)
    if found is None:
        return None
    return {"meta": found["meta"], "charts": split_charts(found["chains"], methods, looks)}


def _compatibility(folder: Path, looks: dict[str, int], damage: Damage) -> dict[str, Any] | None:
    """The page's part on compatibility; none where the run does not compare its models."""
    found = _in_order(comparisons(folder, damage), looks)
    if not found:
        return None
    charts = {
        "matrices": matrices(found),
        "gains": gain_charts(found, looks),
        "backfill": backfill_charts(found),
    }
    return {
        "heads": SUMMARY_HEADS,
        "tables": [
            (in_words(point), [summary_cells(row) for row in rows])
            for point, rows in by_point(_in_order(summary([folder]), looks)).items()
        ],
        "confidence": found[0]["confidence"],
        "flips": flip_rows(found),
        **{key: [(name, Markup(svg)) for name, svg in drawn] for key, drawn in charts.items()},
    }


def _in_order(rows: list[dict[str, Any]], looks: dict[str, int]) -> list[dict[str, Any]]:
    """Rows of methods, or comparisons, in the order of the methods."""
    return sorted(rows, key=lambda row: looks.get(row["method"], len(looks)))


def _losses(folder: Path, looks: dict[str, int], damage: Damage) -> list[tuple[str, str]]:
    """The loss and the throughput of the main trainings of each method's first seed."""
    records, main = {}, MainTrainings()
    for record in training(folder, damage):
        records[record["phase"], record["iteration"]] = record
    of_method: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for (name, iteration), record in records.items():
        phase = phase_of(name)
        if phase is None or not main.has(phase):
            continue
        method, _, step, _ = phase
        if method in of_method or len(of_method) < _CHAINS:
            of_method.setdefault(method, {}).setdefault((step, iteration), record)
    charts = []
    for key, title in (("classify", "Classification loss"), ("images_per_second", "Images/s")):
        lines = []
        for method, found in sorted(of_method.items(), key=lambda own: looks.get(own[0], 0)):
            points = []
            for (step, iteration), record in sorted(found.items()):
                if abs(record.get(key, math.inf)) < _DRAWABLE:  # a loss may be infinite or NaN
                    points.append((step + min(1.0, iteration / record["of"]), float(record[key])))
            lines.append(Line(method, looks.get(method, 0), points))
        charts.append(
            (title, line_chart(lines, "during learning step", title, points=False, spans=True))
        )
    return [(title, chart) for title, chart in charts if chart]


def _spans(done: list[dict[str, Any]], kinds: dict[str, int], damage: Damage) -> list[Span]:
    rows = dict.fromkeys(f"{record['method']}, seed {record['seed']}" for record in done)
    shown = set(list(rows)[:_CHAINS])
    if len(rows) > len(shown):
        damage[LEDGER_FILE] = f"{len(rows):,} chains, of which the first {_CHAINS} are drawn"
    return [
        Span(
            row=row,
            name=record["phase"],
            colour=min(_KINDS, kinds[record["kind"]]),
            start=record["started"],
            end=record["finished"],
        )
        for record in done
        if (row := f"{record['method']}, seed {record['seed']}") in shown
    ]


def _goodput(folder: Path, damage: Damage) -> dict[str, Any] | None:
    """The page's part on where the time went."""
    found = goodput(folder, damage)
    if found is None:
        return None
    shares = {use: seconds / (found.total or 1) for use, seconds in found.seconds.items()}
    return {
        "words": f"G{summary_line(found)[1:]}",
        "uses": [(USES[use], found.seconds[use] / 3600, share) for use, share in shares.items()],
        "allocated": found.allocated,
    }


def _examples(folder: Path, methods: list[str], name: str, damage: Damage) -> list[dict[str, Any]]:
    """The pictures that each method left under `name` in its newest step, first seed found."""
    newest: dict[str, tuple[tuple[int, int], Path]] = {}
    for where, file in step_files(folder, name, damage):
        order = (-where["step"], where["seed"])
        if where["method"] not in newest or order < newest[where["method"]][0]:
            newest[where["method"]] = order, file
    shown, room = [], _PICTURES
    for method in (method for method in methods if method in newest):
        (step, _), file = newest[method]
        searches = examples(file, damage, folder)
        room -= sum(len(p["jpeg"]) for row in searches for p in [row["query"], *row["found"]])
        if room < 0:
            damage[name] = f"the pictures from {method} on are left out: they are too large"
            break
        if searches:
            shown.append({"method": method, "step": -step, "queries": searches})
    return shown
