"""What the methods reached: read from the evaluation files of finished steps."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

METRICS = {
    "top1": "top-1 on unseen identities",
    "map": "mAP on unseen identities",
    "verification": "10-fold verification accuracy",
    "seen_top1": "top-1 on step 0's identities",
}


def evaluations(folder: Path) -> list[dict[str, Any]]:
    """Every evaluation of a run folder, with its method, seed and step."""
    files = sorted(folder.glob("chains/*/seed-*/steps/*/evaluation.json"))
    found = []
    for file in files:
        *_, method, seed, _, step, _ = file.parts
        where = {"method": method, "seed": int(seed.removeprefix("seed-")), "step": int(step)}
        found.append({**json.loads(file.read_text()), **where})
    return found


def compare(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each metric, for each run, method and step."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for folder in folders:
        for evaluation in evaluations(folder):
            groups[folder.name, evaluation["method"], evaluation["step"]].append(evaluation)
    rows = []
    for (run, method, step), found in groups.items():
        row: dict[str, Any] = {"run": run, "method": method, "step": step, "seeds": len(found)}
        for metric in METRICS:
            values = [e[metric] for e in found]
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            row[metric] = {"mean": statistics.fmean(values), "std": deviation}
        rows.append(row)
    return rows


def ordered_methods(rows: list[dict[str, Any]], metric: str = "top1") -> list[tuple[str, str]]:
    """(run, method) pairs from worst to best at the last step."""
    last: dict[tuple[str, str], tuple[int, float]] = {}
    for row in rows:
        key = (row["run"], row["method"])
        last[key] = max(last.get(key, (-1, 0.0)), (row["step"], row[metric]["mean"]))
    return sorted(last, key=lambda key: last[key])


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; none where there is no file."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def tables(rows: list[dict[str, Any]]) -> list[Table]:
    """One table a metric: methods down, learning steps across, percent."""
    steps = sorted({row["step"] for row in rows})
    several_runs = len({row["run"] for row in rows}) > 1
    found = {(r["run"], r["method"], r["step"]): r for r in rows}
    drawn = []
    for metric, title in METRICS.items():
        table = Table(title=f"{title} (%)", title_justify="left", title_style="bold")
        table.add_column("method")
        for step in steps:
            table.add_column(f"step {step}", justify="right")
        for run, method in ordered_methods(rows, metric):
            cells = []
            for step in steps:
                row = found.get((run, method, step))
                cells.append(_cell(row[metric], row["seeds"]) if row else "–")
            table.add_row(f"{run}: {method}" if several_runs else method, *cells)
        drawn.append(table)
    return drawn


def _cell(value: dict[str, float], seeds: int) -> str:
    mean = f"{100 * value['mean']:.1f}"
    return f"{mean} ± {100 * value['std']:.1f}" if seeds > 1 else mean
