"""What other work on the same cores costs: training and embedding beside busy processes.

The same short work alone and beside processes of one busy thread each, with OpenMP's threads
waiting asleep (as perennial has them) and as libgomp has them by itself (spinning first), in turns.
A share of 1 is what the scheduler owes: of n cores, n threads beside m others get n / (n + m) of
the fastest rate alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.iterations import Iterations
from data_shards.cores import cores
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods.plain import Finetune

BATCH, SIZE, ROWS, DIMENSION = 64, 32, 2_000, 64
WAITS: dict[str, dict[str, str]] = {
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "libgomp's own": {},
    "spinning": {"OMP_WAIT_POLICY": "ACTIVE"},
}
_SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def one(work: str, folder: Path) -> Callable[[], Any]:
    """A batch of work: an iteration of training, or a forward pass."""
    if work == "training":
        iterations = Iterations(
            architecture="small",
            dimension=DIMENSION,
            batch=BATCH,
            classifier=ClassifierSettings(),
            size=SIZE,
        )
        return iterations.side(Finetune(), 0, ROWS, folder)
    embedder = build_embedder(EmbedderSettings(architecture="small", dimension=DIMENSION)).eval()
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)

    @torch.inference_mode()
    def embed() -> None:
        embedder(images)

    return embed


def rate(once: Callable[[], Any], seconds: float) -> float:
    """Images a second, over at least so many seconds."""
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        once()
        count += BATCH
    return count / (time.perf_counter() - begun)


@contextmanager
def busy(number: int) -> Iterator[None]:
    """So many other processes, each with a thread that never waits."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measured(work: str, others: int, rounds: int, seconds: float) -> dict[str, float]:
    """Medians of `rate` alone and beside `others`, taken in turns in this process."""
    torch.set_num_threads(cores())
    rates: dict[int, list[float]] = {0: [], others: []}
    with tempfile.TemporaryDirectory() as name:
        once = one(work, Path(name))
        rate(once, seconds)
        for _ in range(rounds):
            for number, found in rates.items():
                with busy(number):
                    found.append(rate(once, seconds))
    return {"alone": statistics.median(rates[0]), "beside": statistics.median(rates[others])}


def apart(work: str, wait: str, *how: object) -> dict[str, float]:
    """`measured` in a process of its own, whose threads wait as `wait` says."""
    kept = {name: value for name, value in os.environ.items() if name not in _SPINNING}
    command = [sys.executable, "-m", "benchmarks.contended", "--work", work, *map(str, how)]
    environment = {**kept, **WAITS[wait]}
    done = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of two seconds each")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work, others, rounds, seconds = given.work
        print(json.dumps(measured(work, int(others), int(rounds), float(seconds))))
        return
    own = cores()
    others, how = 4 * own, (1, 2.0) if given.quick else (5, 3.0)
    owed = own / (own + others)
    rows, shares = [], {}
    for work in ("training", "embedding"):
        every = {wait: apart(work, wait, others, *how) for wait in WAITS}
        best = max(found["alone"] for found in every.values())
        for wait, found in every.items():
            shares[f"{work}, {wait}"] = share = found["beside"] / best / owed
            rows.append(
                {
                    "work, threads waiting": f"{work}, {wait}",
                    "images/s alone": found["alone"],
                    f"beside {others} others": found["beside"],
                    "of the share owed": f"{share:.2f}",
                }
            )
    figures = {"threads": own, "others": others, "owed": owed, "shares": shares}
    report("contended", rows, figures)


if __name__ == "__main__":
    main()
