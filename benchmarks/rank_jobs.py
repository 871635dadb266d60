"""What a training costs before its first iteration, and after its last, in a run of many.

The demo with 20 iterations a training, by the real command: seconds from the beginning of each
training phase until its ranks have the job, until their first iteration is done, and from the last
one until the phase is in the ledger. The first training starts the ranks, the others find them.
With a run folder it reads that one instead, which must log every iteration.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from launch.root import ROOT
from monitoring.records import read_jsonl

SETTINGS = ("training.iterations=20", "training.milestones=[10]", "training.log_every=1")


def trainings(run: Path) -> list[dict[str, Any]]:
    """A row for each training of a run."""
    starts, iterations = read_jsonl(run / "events.jsonl"), read_jsonl(run / "metrics.jsonl")
    rows = []
    for phase in read_jsonl(run / "ledger.jsonl"):
        name, begun = phase["phase"], phase["started"]
        times = [record["time"] for record in iterations if record["phase"] == name]
        if phase["where"] != "ranks" or not times:
            continue
        there = [e["time"] for e in starts if e["event"] == "start" and e["phase"] == name]
        rows.append(
            {
                "training": name,
                "ranks have it": max(there) - begun,
                "first iteration": times[0] - begun,
                "after the last": phase["finished"] - times[-1],
                "whole": phase["finished"] - begun,
            }
        )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one method instead of four")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("run", nargs="?", type=Path)
    given = parser.parse_args()
    if given.run:
        rows = trainings(given.run)
    else:
        with tempfile.TemporaryDirectory() as name:
            words = [f"cluster.workers={given.workers}", *SETTINGS]
            words += ["methods={fkd: {neighbours: 100, relaxation: 0.01}}"] if given.quick else []
            config = ROOT / "configs" / "demo.yaml"
            program = [sys.executable, "-m", "launch.cli", "run"]
            command = [*program, str(config), *words, "--out", "run"]
            subprocess.run(command, check=True, cwd=name, stdout=subprocess.DEVNULL)
            rows = trainings(Path(name) / "run")
    later = [row["first iteration"] for row in rows[1:]]
    figures = {"first": rows[0]["first iteration"], "slowest_later": max(later), "trainings": rows}
    report("seconds until ranks train", rows, figures)


if __name__ == "__main__":
    main()
