"""Speed and memory against peers: ``python -m benchmarks.NAME [--quick]``.

Each measures both sides in one run, prints a table and, last, one line of JSON.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each side over `rounds`, taken in turns after one warm-up of each."""
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            begun = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_a_process(module: str, *words: object) -> dict[str, float]:
    """The figures that ``python -m module words`` prints last, as JSON."""
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine() -> dict[str, Any]:
    """What the figures were read on."""
    flags, model = "", platform.processor()
    with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = line
    extensions = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "extensions": extensions,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def report(title: str, rows: list[dict[str, Any]], figures: dict[str, Any]) -> None:
    """Prints `rows` as a table and every figure as one line of JSON."""
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == next(iter(rows[0])) else "right")
    for row in rows:
        table.add_row(*(f"{v:,.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=110).print(table)
    print(json.dumps({"benchmark": title, **figures, "machine": machine()}))
