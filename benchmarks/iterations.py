"""Whole iterations of any method on random images, for benchmarks to compare."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards.pipeline import Batch
from data_shards.storage.neighbours import VIEWS, TeacherCache, teacher_file, write_teacher_file
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.engine import build_engine, ensure_process_group
from trainer.gradients import Gradients
from trainer.guard import Guard
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.methods.recipe import MethodSettings, Needs, OldClassifier
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import CachedTeacher, NoTeacher


def cache(folder: Path, samples: int, old: int, dimension: int, needs: Needs) -> TeacherCache:
    """A cached teacher with random answers for `samples` images."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {"samples": np.arange(samples)}
    if needs.embeddings:
        tensors["embeddings"] = rng.normal(size=(samples, dimension)).astype(np.float32)
    if needs.neighbours:
        chosen = [rng.choice(old, needs.neighbours, replace=False) for _ in range(samples)]
        tensors["classes"] = np.stack(chosen).astype(np.int32)
        tensors["activations"] = rng.normal(size=(samples, needs.neighbours)).astype(np.float32)
    write_teacher_file(teacher_file(folder, 0, VIEWS[0]), tensors, "random")
    return TeacherCache(folder, 1, VIEWS[:1], "random")


class Iterations:
    """An embedder that all sides share, and a batch of random images of `size`×`size`."""

    def __init__(
        self,
        architecture: Any,
        dimension: int,
        batch: int,
        classifier: ClassifierSettings,
        size: int = 112,
    ) -> None:
        ensure_process_group()
        self._training, self._ranks = TrainingSettings(batch=batch, learning_rate=0.001), Ranks()
        embedder = build_embedder(EmbedderSettings(architecture=architecture, dimension=dimension))
        self._optimizer = make_optimizer(embedder.parameters(), self._training)
        self._engine = build_engine(embedder.train(), self._optimizer, batch, self._ranks)
        self._gradients = Gradients(embedder.parameters())
        self._images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
        self._dimension, self._settings = dimension, classifier

    def side(
        self, method: MethodSettings, old: int, last: int, folder: Path
    ) -> Callable[[], dict[str, torch.Tensor]]:
        """One iteration of `method` with `old` rows from before and `last` in all.

        `folder` takes what the previous model says.
        """
        recipe, ranks = method.recipe().at(1, old), self._ranks
        first = 0 if recipe.data == "all" else old
        current = ShardedRows.new(first, last, self._dimension, 0, ranks)
        previous = ShardedRows.new(0, old, self._dimension, 1, ranks) if first else None
        trained = {"current": current}
        classifier = MarginLoss(self._settings, 0, torch.device("cpu"))
        teacher: Any = NoTeacher()
        anchor = None
        if recipe.needs.any:
            rows = last if recipe.needs.class_means else old
            frozen = ShardedRows.new(0, rows, self._dimension, 1, ranks).requires_grad_(False)
            anchor = OldClassifier(frozen, classifier, old)
        if anchor is not None and recipe.needs.answers:
            held = cache(folder, len(self._images), old, self._dimension, recipe.needs)
            teacher = CachedTeacher(held, anchor.trained())
        if previous is not None and recipe.needs.trained_rows:
            trained["previous"] = previous
        state = State(
            *(self._engine, classifier, current, previous, self._optimizer),
            {name: RowOptimizer(rows, self._training) for name, rows in trained.items()},
            self._gradients,
            Guard(self._training.guard),
        )
        step = Stepper(self._training, recipe, state, teacher, ranks, anchor=anchor)
        count = len(self._images)
        labels = torch.randint(first, last, (count,))
        images = self._images.permute(0, 3, 1, 2)
        batch = Batch(images, labels, np.arange(count), np.zeros(count, dtype=bool))
        return lambda: step(batch)
