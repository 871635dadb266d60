"""What the methods reached: read from the evaluation files of finished steps."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from monitoring.intervals import half_width, wilson
from monitoring.live.extent import Damaged, extent
from monitoring.memory import memory, memory_table
from monitoring.records import Damage, evaluations
from untrusted.text import printable

METRICS = {
    "top1": "top-1 on unseen identities",
    "map": "mAP on unseen identities",
    "verification": "10-fold verification accuracy",
    "seen_top1": "top-1 on step 0's identities",
    "class_accuracy": "accuracy among all classes so far",
    "average_accuracy": "average incremental accuracy",
    "task_accuracy": "accuracy averaged over steps' classes",
    "forgetting": "average forgetting",
    "first_drop": "drop on step 0's classes (F)",
    "old_as_new": "old classes' images taken for new",
    "new_as_old": "new classes' images taken for old",
}
LOWER_IS_BETTER = {"forgetting", "first_drop", "old_as_new", "new_as_old"}
HARDER_EACH_STEP = {"class_accuracy", "average_accuracy", "task_accuracy", *LOWER_IS_BETTER}
"""Among ever more classes: that they are worse than a step before is no fault."""
_OF_TESTS = {
    "accuracy": "10-fold accuracy",
    "rank1": "rank-1",
    "top1": "top-1",
    "map": "mAP",
    "tar": "TAR at FAR",
    "tpir": "TPIR at FPIR",
}
_OF_QUERIES = ("top1", "map")
SPREAD = "± is the standard deviation over seeds of the training, at one split (benchmark.seed)"
_RATES = {"tar": "0.0001", "tpir": "0.01"}  # shown, where the test is large enough to tell


def parts(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The results of each test set of an evaluation, by name; raw and cleaned lists apart."""
    found: dict[str, dict[str, Any]] = {}
    for name, test in evaluation.get("tests", {}).items():
        if "raw" in test or "cleaned" in test:
            lists = (part for part in ("raw", "cleaned") if part in test)
            found |= {f"{name} {part}": test[part] for part in lists}
        else:
            found[name] = test
    return found


def figures(evaluation: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """What is compared of an evaluation: by metric its title and value."""
    found = {
        metric: (title, evaluation[metric])
        for metric, title in METRICS.items()
        if metric in evaluation
    }
    for name, test in parts(evaluation).items():
        for key, title in _OF_TESTS.items():
            value = test.get(key)
            if isinstance(value, dict):
                rate = _RATES[key] if _RATES[key] in value else next(iter(value), None)
                title, value = f"{title} {rate}", value.get(rate)
            if value is not None:
                found[f"tests.{name}.{key}"] = (f"{name}: {title}", value)
    return found


def compare(folders: Iterable[Path], damage: Damage | None = None) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each metric, for each run, method and step, and
    half of the mean's 95 % interval (`monitoring.intervals`), 0 of a single seed.

    Where learned classes are tested: ``tasks`` and ``confusion``, means over seeds, and ``memory``
    (`monitoring.memory`).
    """
    folders = list(folders)
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        for evaluation in evaluations(folder, damage):
            groups[folder.name, evaluation["method"], evaluation["step"]].append(evaluation)
    rows = []
    order = {folder.name: number for number, folder in enumerate(folders)}
    places = {folder.name: _asked(folder) for folder in folders}

    def place(key: tuple[str, str, int]) -> tuple[int, int, str, int]:
        run, method, step = key
        own = places[run]
        return order[run], own.get(method, len(own)), method, step

    for run, method, step in sorted(groups, key=place):
        found = groups[run, method, step]
        row: dict[str, Any] = {"run": run, "method": method, "step": step, "seeds": len(found)}
        of_seeds = [figures(evaluation) for evaluation in found]
        titles = {metric: title for own in of_seeds for metric, (title, _) in own.items()}
        for metric, title in titles.items():
            values = [figure[metric][1] for figure in of_seeds if metric in figure]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            mean, half = statistics.fmean(values), half_width(values) or 0.0
            row[metric] = {"title": title, "mean": mean, "std": deviation, "half_width": half}
            if metric in _OF_QUERIES and (count := _queries(found)):
                row[metric]["queries"] = count
        for key in ("tasks", "confusion"):
            lists = [evaluation[key] for evaluation in found if key in evaluation]
            if len({len(own) for own in lists}) == 1:  # a damaged file may be of another length
                row[key] = _mean(lists)
        rows.append(row)
    kept = {(f.name, *key): own for f in folders for key, own in memory(f, damage).items()}
    for row in rows:
        if (own := kept.get((row["run"], row["method"], row["step"]))) is not None:
            row["memory"] = own
    return rows


def _queries(found: list[dict[str, Any]]) -> int | None:
    """How many queries with a match every seed's figures are of; None where that is not said."""
    counts = {e.get("queries", 0) - e.get("queries_without_match", 0) for e in found}
    count = max(counts)
    return count if len(counts) == 1 and count > 0 else None


def counted(rows: list[dict[str, Any]], metric: str) -> str:
    """How many queries a metric is of, to stand behind its title; empty where that is not said."""
    counts = sorted({row[metric]["queries"] for row in rows if "queries" in row.get(metric, {})})
    least, *more = [f"{count:,}" for count in (counts[:1] + counts[1:][-1:])] or [""]
    return f", {' to '.join([least, *more])} queries" if least else ""


def interval(metric: str, value: dict[str, Any], seeds: int) -> tuple[float, float] | None:
    """The 95 % interval of a metric of one of `compare`'s rows: over seeds by Student's t; of a
    single seed's top-1 that of so many independent queries (Wilson). None where neither is known.
    """
    if seeds > 1:
        low, high = (value["mean"] + sign * value["half_width"] for sign in (-1, 1))
        return max(min(0.0, value["mean"]), low), min(max(1.0, value["mean"]), high)
    if metric == "top1" and "queries" in value and 0 <= value["mean"] <= 1:
        return wilson(value["mean"], value["queries"])
    return None


def _mean(values: list[Any]) -> Any:
    """The mean over seeds of numbers, or of lists of equal lengths, element by element."""
    if isinstance(values[0], list):
        return [_mean(list(own)) for own in zip(*values, strict=True)]
    return statistics.fmean(values)


def metrics(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Every metric of `compare`'s rows and its title, those of test sets last."""
    found = {
        m: v["title"]
        for row in rows
        for m, v in row.items()
        if isinstance(v, dict) and "title" in v
    }
    return {m: METRICS[m] for m in METRICS if m in found} | found


def ordered_methods(rows: list[dict[str, Any]], metric: str | None = None) -> list[tuple[str, str]]:
    """(run, method) pairs that have the metric, in the order of `compare`: that of the runs'
    configurations, which every table, chart and page keeps."""
    having = (row for row in rows if metric is None or metric in row)
    return list(dict.fromkeys((row["run"], row["method"]) for row in having))


def _asked(folder: Path) -> dict[str, int]:
    """The place of each method in a run's configuration; empty where that is damaged."""
    try:
        return {m: n for n, m in enumerate(extent(folder.resolve(), folder).methods)}
    except Damaged:
        return {}


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """One table a metric: methods down, learning steps across, percent; and one of the memory."""
    steps = sorted({row["step"] for row in rows})
    several_runs = len({row["run"] for row in rows}) > 1
    found = {(r["run"], r["method"], r["step"]): r for r in rows}
    drawn = []
    for metric, title in metrics(rows).items():
        table = Table(
            title=Text(printable(f"{title} (%){counted(rows, metric)}")),
            title_justify="left",
            title_style="bold",
        )
        table.add_column("method")
        for step in steps:
            table.add_column(f"step {step}", justify="right")
        for run, method in ordered_methods(rows, metric):
            cells = []
            for step in steps:
                row = found.get((run, method, step))
                cells.append(_cell(row[metric], row["seeds"]) if row and metric in row else "–")
            table.add_row(Text(printable(f"{run}: {method}" if several_runs else method)), *cells)
        drawn.append(table)
    if drawn and any(row["seeds"] > 1 for row in rows):
        drawn[-1].caption, drawn[-1].caption_justify = SPREAD, "left"
    if (kept := memory_table(rows)) is not None:
        drawn.append(kept)
    return drawn


def _cell(value: dict[str, float], seeds: int) -> str:
    mean = f"{100 * value['mean']:.1f}"
    return f"{mean} ± {100 * value['std']:.1f}" if seeds > 1 else mean
