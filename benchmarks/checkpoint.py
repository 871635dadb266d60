"""What checkpoints cost: saving every 50 iterations against not saving, and resuming.

Saving, in one process, the same loop with and without: the demo's size (300 rows, d = 128) and a
classifier of 85,738 rows, d = 512, whose checkpoints are 380 MB; asked: < 5 % of an iteration on
average. Resuming: the demo's command is killed and given again; asked: < 10 s from the trainer's
start to its first iteration.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks import interleaved, report
from data_shards.pipeline import Batch
from monitoring.metrics import Metrics
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.checkpoint import Checkpoints
from trainer.checkpoint.optimizer import optimizer_tensors
from trainer.checkpoint.rows import part_name, rows_tensors
from trainer.engine import build_engine, ensure_process_group
from trainer.gradients import Gradients
from trainer.guard import Guard
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.methods.plain import Finetune
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import NoTeacher

BATCH, INTERVAL = 128, 50
SIZES = {"demo": (300, 128), "85,738 rows": (85_738, 512)}
"""Rows and dimension."""
DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def saving(rows: int, dimension: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of 50 iterations with and without a checkpoint, and its size."""
    training, ranks, metrics = (
        TrainingSettings(batch=BATCH, learning_rate=0.001),
        Ranks(),
        Metrics(),
    )
    embedder = build_embedder(EmbedderSettings(architecture="small", dimension=dimension))
    optimizer = make_optimizer(embedder.parameters(), training)
    engine = build_engine(embedder.train(), optimizer, BATCH, ranks)
    current = ShardedRows.new(first=0, last=rows, dimension=dimension, seed=0, ranks=ranks)
    row_optimizers = {"current": RowOptimizer(current, training)}
    classifier = MarginLoss(ClassifierSettings(), 0, current.weight.device)
    gradients, guard = Gradients(embedder.parameters()), Guard(training.guard)
    state = State(
        engine=engine,
        classifier=classifier,
        blocks={"current": current},
        old=0,
        embedder_optimizer=optimizer,
        row_optimizers=row_optimizers,
        gradients=gradients,
        guard=guard,
    )
    step = Stepper(
        training=training,
        recipe=Finetune().recipe().at(0, 0),
        state=state,
        teacher=NoTeacher(),
        ranks=ranks,
    )
    images = torch.randint(0, 256, (BATCH, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(0, rows, (BATCH,))
    batch = Batch(images, labels, np.arange(BATCH), np.zeros(BATCH, dtype=bool))

    def save() -> None:
        files = {
            part_name("current", ranks): rows_tensors(current, row_optimizers["current"]),
            "embedder": dict(engine.module.state_dict()),
            part_name("optimizer", ranks): optimizer_tensors(engine, optimizer),
        }
        checkpoints.save(state.iteration, files, {})

    def loop(before: Callable[[], None], after: Callable[[], None]) -> Callable[[], None]:
        def iterations() -> None:
            before()
            for _ in range(INTERVAL):
                step(batch)
            after()

        return iterations

    with Checkpoints(
        location=str(folder), settings=training, ranks=ranks, metrics=metrics, tell=print
    ) as checkpoints:
        sides = {
            "without": loop(lambda: None, lambda: None),
            "with": loop(save, checkpoints.wait),  # the next save would wait, too
        }
        seconds = interleaved(sides, rounds)
        newest = checkpoints.newest()
    assert newest is not None
    value = metrics.registry.get_sample_value
    pause = value("perennial_checkpoint_pause_seconds_total")
    saved = value("perennial_checkpoints_saved_total")
    assert pause is not None and saved == rounds + 1
    return {
        "iteration_seconds": seconds["without"] / INTERVAL,
        "share": seconds["with"] / seconds["without"] - 1,
        "pause_seconds": pause / saved,
        "megabytes": sum(newest.size(name) for name in newest.hashes) / 1e6,
    }


def resuming(folder: Path, workers: int) -> dict[str, float]:
    """Seconds from the command to the trainer's start, and from there to its first iteration."""
    out = folder / f"run-{workers}"
    command = [sys.executable, "-m", "launch.cli", "run", str(DEMO), "--out", str(out)]
    command += [
        "training.checkpoint_every=50",
        "training.log_every=1",
        f"cluster.workers={workers}",
    ]
    log, target = out / "metrics.jsonl", out / "targets" / "trainer-0.json"

    def records() -> list[dict[str, Any]]:
        return (
            [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            if log.exists()
            else []
        )

    def until(condition: Callable[[], bool]) -> float:
        """Runs the command until `condition`, then kills all of it; when it was given."""
        given = time.time()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not condition():
                if process.poll() is not None:
                    raise RuntimeError(f"{' '.join(command)} ended")
                time.sleep(0.02)
        finally:
            for member in psutil.Process(process.pid).children(recursive=True):
                member.kill()
            process.kill()
            process.wait()
        return given

    until(lambda: any(out.glob("chains/finetune/seed-0/steps/0/checkpoints/100")))
    before = len(records())
    given = until(lambda: len(records()) > before)
    first = records()[before]
    if first["iteration"] != 101:
        raise RuntimeError(f"went on at iteration {first['iteration']}, not at 101")
    started = target.stat().st_mtime
    return {"start_seconds": started - given, "resume_seconds": first["time"] - started}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the demo's size only, three rounds")
    quick = parser.parse_args().quick
    ensure_process_group()
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for size, (count, dimension) in list(SIZES.items())[: 1 if quick else None]:
            rounds = 3 if quick or size != "demo" else 9
            figures[size] = of = saving(count, dimension, Path(name) / str(count), rounds)
            rows.append({"what": f"saving, {size}: share of an iteration", "is": of["share"]})
            rows.append({"what": f"saving, {size}: iteration, s", "is": of["iteration_seconds"]})
            rows.append({"what": f"saving, {size}: pause, s", "is": of["pause_seconds"]})
            rows.append({"what": f"saving, {size}: megabytes", "is": of["megabytes"]})
        for workers in (1,) if quick else (0, 1):
            figures[f"resuming, workers {workers}"] = of = resuming(Path(name), workers)
            what = f"resuming, workers {workers}"
            rows.append({"what": f"{what}: command to trainer, s", "is": of["start_seconds"]})
            rows.append({"what": f"{what}: trainer to iteration, s", "is": of["resume_seconds"]})
    report("checkpoint", rows, figures)


if __name__ == "__main__":
    main()
