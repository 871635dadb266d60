"""What an iteration costs: FKD with a cached teacher against finetuning, and LwF beside them.

ResNet-50, 112×112, d = 256, batch 384, K = 200, 17,148 new identities; 68,592 old ones, and again
17,148: FKD must cost at most 1.10 times finetuning, and must not have grown.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import interleaved, report
from data_shards.neighbours import VIEWS, TeacherCache, teacher_file, write_teacher_file
from data_shards.pipeline import Batch
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.engine import build_engine, ensure_process_group
from trainer.gradients import Gradients
from trainer.guard import Guard
from trainer.heads.classifier import Classifier, ClassifierSettings
from trainer.heads.collectives import Ranks
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.methods.distillation import FlexibleDistillation, LearningWithoutForgetting
from trainer.methods.plain import Finetune
from trainer.methods.recipe import OldClassifier
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import CachedTeacher, NoTeacher

NEW, FEW_OLD, MANY_OLD, DIMENSION, NEIGHBOURS = 17_148, 17_148, 68_592, 256, 200


def cache(folder: Path, samples: int, old: int, recipe: Any) -> TeacherCache:
    """A cached teacher with random answers for `samples` images."""
    rng, needs = np.random.default_rng(0), recipe.needs
    tensors: dict[str, np.ndarray] = {"samples": np.arange(samples)}
    if needs.embeddings:
        tensors["embeddings"] = rng.normal(size=(samples, DIMENSION)).astype(np.float32)
    if needs.neighbours:
        chosen = [rng.choice(old, needs.neighbours, replace=False) for _ in range(samples)]
        tensors["classes"] = np.stack(chosen).astype(np.int32)
        tensors["activations"] = rng.normal(size=(samples, needs.neighbours)).astype(np.float32)
    write_teacher_file(teacher_file(folder, 0, VIEWS[0]), tensors, "random")
    return TeacherCache(folder, 1, VIEWS[:1], "random")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 48 and one round")
    quick = parser.parse_args().quick
    batch, rounds = (48, 1) if quick else (384, 3)
    ensure_process_group()
    training, ranks = TrainingSettings(batch=batch, learning_rate=0.001), Ranks()
    embedder = build_embedder(EmbedderSettings(architecture="resnet50", dimension=DIMENSION))
    optimizer = make_optimizer(embedder.parameters(), training)
    engine = build_engine(embedder.train(), optimizer, batch, ranks)
    gradients = Gradients(embedder.parameters())
    images = torch.randint(0, 256, (batch, 112, 112, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    samples = np.arange(batch)
    fkd = FlexibleDistillation(neighbours=NEIGHBOURS)
    sides = {}
    with tempfile.TemporaryDirectory() as name:
        for method, old in (
            (Finetune(), MANY_OLD),
            (fkd, MANY_OLD),
            (LearningWithoutForgetting(), MANY_OLD),
            (Finetune(), FEW_OLD),
            (fkd, FEW_OLD),
            (LearningWithoutForgetting(), FEW_OLD),
        ):
            recipe = method.recipe().at(1, old)
            current = ShardedRows.new(old, old + NEW, DIMENSION, 0, ranks)
            previous = ShardedRows.new(0, old, DIMENSION, 1, ranks)
            trained = {"current": current}
            classifier = Classifier(ClassifierSettings(), 0, images.device)
            teacher: Any = NoTeacher()
            if recipe.needs.any:
                trained["previous"] = previous
                folder = Path(name) / f"{method.kind}-{old}"
                frozen = ShardedRows.new(0, old, DIMENSION, 1, ranks).requires_grad_(False)
                held = OldClassifier(frozen, classifier, old)
                teacher = CachedTeacher(cache(folder, batch, old, recipe), held)
            row_optimizers = {k: RowOptimizer(rows, training) for k, rows in trained.items()}
            state = State(
                engine,
                classifier,
                current,
                previous,
                optimizer,
                row_optimizers,
                gradients,
                Guard(training.guard),
            )
            step = Stepper(training, recipe, state, teacher, ranks)
            labels = torch.randint(old, old + NEW, (batch,))
            given = Batch(images, labels, samples, np.zeros(batch, dtype=bool))
            sides[f"{method.kind}, {old:,} old"] = lambda step=step, given=given: step(given)
        seconds = interleaved(sides, rounds)
    finetune, many, few = (
        seconds[f"{kind}, {old:,} old"]
        for kind, old in (("finetune", MANY_OLD), ("fkd", MANY_OLD), ("fkd", FEW_OLD))
    )
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
        },
    )


if __name__ == "__main__":
    main()
