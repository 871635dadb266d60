"""What an iteration costs: FKD with a cached teacher against finetuning, LwF, and FKD with replay.

ResNet-50, 112×112, d = 256, batch 384, K = 200, 17,148 new identities; 68,592 old ones, and again
17,148: FKD must cost at most 1.10 times finetuning, and must not have grown. FKD that replays as
many features of old identities as there are images must cost at most 1.10 times FKD.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import interleaved, report
from benchmarks.iterations import Iterations
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods import Combination
from trainer.methods.distillation import FlexibleDistillation, LearningWithoutForgetting
from trainer.methods.plain import Finetune

NEW, FEW_OLD, MANY_OLD, DIMENSION, NEIGHBOURS = 17_148, 17_148, 68_592, 256, 200


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 48 and one round")
    quick = parser.parse_args().quick
    batch, rounds = (48, 1) if quick else (384, 3)
    iterations = Iterations("resnet50", DIMENSION, batch, ClassifierSettings())
    fkd = FlexibleDistillation(neighbours=NEIGHBOURS)
    methods = {
        "finetune": Finetune(),
        "fkd": fkd,
        "lwf": LearningWithoutForgetting(),
        "fkd + replay": Combination.model_validate({"of": {"fkd": dict(fkd), "replay": {}}}),
    }
    with tempfile.TemporaryDirectory() as name:
        sides = {
            f"{title}, {old:,} old": iterations.side(
                method, old, old + NEW, Path(name) / f"{title}-{old}"
            )
            for old in (MANY_OLD, FEW_OLD)
            for title, method in methods.items()
        }
        seconds = interleaved(sides, rounds)
    finetune, many, replayed = (
        seconds[f"{title}, {MANY_OLD:,} old"] for title in ("finetune", "fkd", "fkd + replay")
    )
    few = seconds[f"fkd, {FEW_OLD:,} old"]
    report(
        "step",
        [
            {"iteration": side, "seconds": value, "of finetune": f"{value / finetune:.3f}×"}
            for side, value in seconds.items()
        ],
        {
            "batch": batch,
            "seconds": seconds,
            "fkd_to_finetune": many / finetune,
            "fkd_many_to_few": many / few,
            "replay_to_fkd": replayed / many,
        },
    )


if __name__ == "__main__":
    main()
