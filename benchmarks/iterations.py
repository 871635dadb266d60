"""Whole iterations of any method on random images, for benchmarks to compare."""

from collections.abc import Callable
from dataclasses import replace
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
from trainer.methods.forward import OldClassifier
from trainer.methods.recipe import MethodSettings
from trainer.methods.wants import Answers, ClassMeans
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.replay.gaussian import Gaussian
from trainer.row_layout import row_blocks
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import CachedTeacher, NoTeacher


def cache(folder: Path, samples: int, old: int, dimension: int, wanted: Answers) -> TeacherCache:
    """A cached teacher with random answers for `samples` images."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {"samples": np.arange(samples)}
    if wanted.embeddings:
        tensors["embeddings"] = rng.normal(size=(samples, dimension)).astype(np.float32)
    if wanted.top_k:
        chosen = [rng.choice(old, wanted.top_k, replace=False) for _ in range(samples)]
        tensors["classes"] = np.stack(chosen).astype(np.int32)
        tensors["activations"] = rng.normal(size=(samples, wanted.top_k)).astype(np.float32)
    write_teacher_file(teacher_file(folder, 0, VIEWS[0]), tensors, "random")
    return TeacherCache(folder, 1, VIEWS[:1], "random")


def random_normal(source: Gaussian) -> Gaussian:
    """The `source` with normal numbers in place of whatever its memory held."""
    return replace(
        source,
        means=torch.randn(source.means.shape),
        factor=torch.eye(source.noise).expand(source.factor.shape),
    )


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
        recipe, ranks = method.recipe().at(1, old, new_rows=last - old), self._ranks
        layout = row_blocks(recipe, old, last)
        blocks = {
            name: ShardedRows.new(
                first=block.rows.start,
                last=block.rows.stop,
                dimension=self._dimension,
                seed=seed,
                ranks=ranks,
            ).requires_grad_(block.trained)
            for seed, (name, block) in enumerate(layout.items())
        }
        classifier = MarginLoss(self._settings, 0, torch.device("cpu"))
        teacher: Any = NoTeacher()
        anchor = None
        if recipe.wants:
            rows = last if recipe.want(ClassMeans) else old
            frozen = ShardedRows.new(
                first=0, last=rows, dimension=self._dimension, seed=1, ranks=ranks
            ).requires_grad_(False)
            anchor = OldClassifier(frozen, classifier, old)
        if anchor is not None and (wanted := recipe.want(Answers)) is not None:
            held = cache(
                folder=folder,
                samples=len(self._images),
                old=old,
                dimension=self._dimension,
                wanted=wanted,
            )
            teacher = CachedTeacher(held, anchor.trained())
        state = State(
            engine=self._engine,
            classifier=classifier,
            blocks=blocks,
            old=old,
            embedder_optimizer=self._optimizer,
            row_optimizers={
                name: RowOptimizer(blocks[name], self._training)
                for name, block in layout.items()
                if block.trained
            },
            gradients=self._gradients,
            guard=Guard(self._training.guard),
        )
        step = Stepper(
            training=self._training,
            recipe=recipe,
            state=state,
            teacher=teacher,
            ranks=ranks,
            anchor=anchor,
            loaded={
                type(want): random_normal(source)
                for want in recipe.wants
                if isinstance(source := want.imagined({}, old, (self._dimension,)), Gaussian)
            },
        )
        count = len(self._images)
        labels = torch.randint(0 if recipe.sees_all else old, last, (count,))
        images = self._images.permute(0, 3, 1, 2)
        batch = Batch(images, labels, np.arange(count), np.zeros(count, dtype=bool))
        return lambda: step(batch)
