"""What a memory costs: an iteration with exemplars, and choosing them.

An iteration that trains on 2,000 exemplars with the new images must cost at most 1.05 times one of
as many images without; so must one of BiC, beside one of LwF, whose losses it has. Herding 100,000
images of 1,000 classes, 512 numbers each, must take less than a tenth of a training epoch on them
(ResNet-18, 32×32); one core herds, all of them train. The forward passes that give the embeddings
are apart: any choice by the model needs them.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import interleaved, report
from benchmarks.iterations import Iterations
from launch.config.run import RunConfig
from launch.execution.in_process import in_process
from launch.phases.execute import execute
from monitoring.records import metrics
from trainer.exemplars import herding
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods.plain import Finetune

CLASSES, IMAGES, NUMBERS, CHOSEN = 1_000, 100, 512, 20
BATCH, MEMORY = 128, 2_000


def iterations(folder: Path, quick: bool) -> dict[str, float]:
    """Seconds of an iteration of a second learning step, without a memory and with one, by method.

    The methods take turns, a seed after the other, in one run of the product.
    """
    config = RunConfig.model_validate(
        {
            "dataset": str(folder / "glyphs"),
            "glyphs": {"identities": 300 if quick else 600},
            "benchmark": {"steps": 2, "test_identities": 20, "pairs": 40, "seen_identities": 0},
            "training": {"iterations": 60 if quick else 150, "batch": BATCH, "log_every": 10},
            "methods": {
                "without": {"kind": "finetune", "over": "all"},
                "with": {"kind": "finetune", "over": "all", "memory": {"total": MEMORY}},
                # BiC is nothing without a memory: its losses are LwF's, which has none here
                "lwf-without": {"kind": "lwf", "over": "all"},
                "bic-with": {"kind": "bic", "hold_out": 0.2, "memory": {"total": MEMORY}},
            },
            "seeds": [0, 1] if quick else [0, 1, 2, 3, 4],
            "cluster": {"workers": 0, "actors": 1},
        }
    )
    execute(config, folder / "run", Console(quiet=True), in_process)
    seconds: dict[str, list[float]] = defaultdict(list)
    for record in metrics(folder / "run"):
        method, _, step, _ = record["phase"].split("/")
        if step == "step-1" and record["iteration"] > 20:  # the first ones warm up
            seconds[method].append(record["seconds"] / record["iterations"])
    return {method: statistics.median(own) for method, own in seconds.items()}


def choosing(quick: bool) -> tuple[float, float]:
    """Seconds of herding all images, and of a training epoch on them, from some iterations."""
    classes = CLASSES // 10 if quick else CLASSES
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(classes, IMAGES, NUMBERS)).astype(np.float32)
    herding(vectors[0], CHOSEN)
    begun = time.perf_counter()
    for own in vectors:
        herding(own, CHOSEN)
    herded = (time.perf_counter() - begun) * CLASSES / classes
    with tempfile.TemporaryDirectory() as name:
        sides = Iterations("resnet18", NUMBERS, BATCH, ClassifierSettings(), size=32)
        step = sides.side(Finetune(), 0, CLASSES, Path(name))
        (iteration,) = interleaved({"step": step}, 3 if quick else 10).values()
    return herded, iteration * CLASSES * IMAGES / BATCH


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer iterations and classes")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as name:
        seconds = iterations(Path(name), quick)
    herded, epoch = choosing(quick)
    rows = [
        *({"what": f"an iteration {side} memory", "seconds": s} for side, s in seconds.items()),
        {"what": "herding 100,000 images, one core", "seconds": herded},
        {"what": "a training epoch on them", "seconds": epoch},
    ]
    figures = {
        "with_to_without": seconds["with"] / seconds["without"],
        "bic_to_lwf_without": seconds["bic-with"] / seconds["lwf-without"],
        "herding_to_epoch": herded / epoch,
    }
    report("memory", rows, figures)


if __name__ == "__main__":
    main()
