"""A batch in parts trains as the whole does: the mean over all samples, at any ZeRO stage."""

import numpy as np
import pytest
import torch

from data_shards.order import rank_slice
from data_shards.pipeline import Batch
from tests.ranks import on_ranks
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.batch_norm import synchronise_batch_norm
from trainer.engine import build_engine
from trainer.gradients import Gradients
from trainer.guard import Guard
from trainer.heads.classifier import Classifier, ClassifierSettings
from trainer.heads.collectives import Ranks
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.methods.plain import Finetune
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import NoTeacher

ROWS, WORLD = 11, 2


def batch(parts):
    """The same six images a rank, `parts` times over: each part then has the whole's statistics."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6 * WORLD, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, ROWS, (6 * WORLD,), generator=generator)
    own = rank_slice(6 * WORLD, Ranks.default().rank, WORLD)
    images, labels = images[own].repeat(parts, 1, 1, 1), labels[own].repeat(parts)
    return Batch(images, labels, np.arange(len(labels)), np.zeros(len(labels), dtype=bool))


def trained(zero, parts, accumulate):
    """Loss, embedder and rows after three iterations."""
    ranks, device = Ranks.default(), torch.device("cpu")
    training = TrainingSettings(
        batch=6 * WORLD * parts, accumulate=accumulate, learning_rate=0.1, zero=zero
    )
    embedder = build_embedder(EmbedderSettings(width=2, dimension=4), seed=1).train()
    synchronise_batch_norm(embedder, ranks)
    gradients, guard = Gradients(embedder.parameters(), None), Guard(training.guard)
    optimizer = make_optimizer(embedder.parameters(), training)
    engine = build_engine(embedder, optimizer, training.batch, ranks, zero)
    rows = ShardedRows.new(0, ROWS, 4, 0, ranks)
    optimizers = {"current": RowOptimizer(rows, training)}
    classifier = Classifier(ClassifierSettings(), 0, device)
    state = State(engine, classifier, rows, None, optimizer, optimizers, gradients, guard)
    step = Stepper(training, Finetune().recipe(), state, NoTeacher(), ranks)
    losses = [float(step(batch(parts))["loss"]) for _ in range(3)]
    return losses, [p.detach().clone() for p in embedder.parameters()], rows.weight.detach()


def on_rank():
    whole = trained(0, 1, 1)
    return whole, [trained(zero, 3, 3) for zero in (0, 1, 2)], trained(0, 3, 1)


def test_accumulated_parts_train_as_the_whole_batch_does(tmp_path):
    for whole, accumulated, repeated in on_ranks(WORLD, on_rank, folder=tmp_path):
        for other in [*accumulated, repeated]:
            torch.testing.assert_close(other, whole, rtol=1e-4, atol=1e-5)


def test_a_part_without_an_image_is_refused():
    from launch.config import RunConfig

    with pytest.raises(ValueError, match=r"training.accumulate = 5 leaves a worker no image"):
        RunConfig.model_validate(
            {
                "dataset": "d",
                "methods": {"finetune": {}},
                "training": {"batch": 8, "accumulate": 5},
                "cluster": {"workers": 2},
            }
        )
