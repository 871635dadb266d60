"""A batch in parts trains as the whole does: the mean over all samples, at any ZeRO stage.

Of every method: a term that counts some samples only must not weigh them by where they fall.
"""

import numpy as np
import pytest
import torch

from data_shards.orders.order import rank_slice
from data_shards.pipeline import Batch
from tests.ranks import on_ranks
from tests.trainer.loops import ALL, any_generator, any_images, any_importance
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.batch_norm import synchronise_batch_norm
from trainer.engine import build_engine, ensure_process_group
from trainer.entrance import shape_at
from trainer.gradients import Gradients
from trainer.guard import Guard
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.margins import AdaFace, CosFace
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.methods import METHODS
from trainer.methods.bic import BiasCorrection
from trainer.methods.combination import Combination
from trainer.methods.forward import OldClassifier
from trainer.methods.icarl import ICaRL
from trainer.methods.importance import Importance
from trainer.methods.lucir import LUCIR
from trainer.methods.plain import Finetune
from trainer.methods.replay import FeatureReplay, Generator
from trainer.methods.wants import Answers, AnswersWithin, ClassMeans
from trainer.optimizers import TrainingSettings, make_optimizer
from trainer.replay.gaussian import Gaussians
from trainer.row_layout import row_blocks
from trainer.state import State
from trainer.stepper import Stepper
from trainer.teacher import NoTeacher, OnlineTeacher

ROWS, WORLD = 11, 2
OLD = 5
EVERY = {
    **ALL,
    "fkd of all": Combination(of={"fkd": {"neighbours": 3}, "lfl": {}}, data="all"),
    "lwf of all": Combination(of={"lwf": {}, "lfl": {}}, data="all"),
    "l2+bct-kd": Combination(of={"l2": {}, "bct-kd": {}}, data="all"),
    "lfl+bct": Combination(of={"lfl": {}, "bct": {}}, data="all"),
    "icarl": ICaRL(memory={"per_class": 2}),
    "lucir": LUCIR(memory={"per_class": 2}),
    "bic": BiasCorrection(),
    "replay over all": FeatureReplay(over="all", features=7, covariance="diagonal"),
}


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
    classifier = MarginLoss(ClassifierSettings(), 0, device)
    state = State(
        engine=engine,
        classifier=classifier,
        blocks={"current": rows},
        old=0,
        embedder_optimizer=optimizer,
        row_optimizers=optimizers,
        gradients=gradients,
        guard=guard,
    )
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


def rows_from(first, last, seed):
    return ShardedRows.new(first, last, 4, seed, Ranks())


def updated(method, settings, accumulate):
    """One update of rate 1: what moved, the running statistics and each term's mean.

    The old identities' images all lie in the first part, and batch normalisation is as it is, so
    that parts have no statistics of their own.
    """
    torch.set_num_threads(1)
    ensure_process_group()
    recipe, device, count = EVERY[method].recipe().at(1, OLD), torch.device("cpu"), 12
    whole = recipe.sees_all or recipe.memory is not None
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    known = torch.arange(3) % OLD if whole else torch.full((3,), OLD)
    new = torch.randint(OLD, ROWS, (count - 3,), generator=generator)
    training = TrainingSettings(
        batch=count, accumulate=accumulate, learning_rate=1.0, warmup=0, momentum=0, weight_decay=0
    )
    network = EmbedderSettings(width=2, dimension=4)
    embedder = build_embedder(network, seed=1).eval()
    gradients, guard = Gradients(embedder.parameters(), None), Guard(training.guard)
    optimizer = make_optimizer(embedder.parameters(), training)
    engine = build_engine(embedder, optimizer, count, Ranks())
    blocks = {
        name: rows_from(block.rows.start, block.rows.stop, 2).requires_grad_(block.trained)
        for name, block in row_blocks(recipe, OLD, ROWS).items()
    }
    frozen = rows_from(0, ROWS if recipe.want(ClassMeans) else OLD, 3).requires_grad_(False)
    anchor = OldClassifier(frozen, MarginLoss(settings, 5, device), OLD)
    old = build_embedder(network, seed=3)
    teacher = NoTeacher()
    if (wanted := recipe.want(Answers)) is not None:
        teacher = OnlineTeacher(old, anchor.trained(), wanted)
    classifier = MarginLoss(settings, 7, device)
    state = State(
        engine=engine,
        classifier=classifier,
        blocks=blocks,
        old=OLD,
        embedder_optimizer=optimizer,
        row_optimizers={name: RowOptimizer(rows, training) for name, rows in blocks.items()},
        gradients=gradients,
        guard=guard,
    )
    before = [p.detach().clone() for p in embedder.parameters()]
    loaded = {Importance: any_importance(old), AnswersWithin: old.eval()}
    if (drawn := recipe.want(Generator)) is not None:
        loaded[Generator] = (
            drawn.how.source(any_generator(OLD, 4, drawn.how), device)
            if isinstance(drawn.how, Gaussians)
            else any_images(OLD, shape_at(network, drawn.place, (16, 16))).generator
        )
    step = Stepper(training, recipe, state, teacher, Ranks(), anchor=anchor, loaded=loaded)
    labels = torch.cat([known, new])
    losses = step(Batch(images, labels, np.arange(count), np.zeros(count, dtype=bool)))
    assert step.fault is None
    moved = [p.detach() - b for p, b in zip(embedder.parameters(), before, strict=True)]
    blocks = {name: rows.weight.detach() for name, rows in state.blocks.items()}
    return {"embedder": moved, **blocks, "running": classifier.running, "losses": losses}


def test_every_method_is_tried():
    assert {type(method) for method in EVERY.values()} == set(METHODS.values())


@pytest.mark.reliability(
    2, "a batch in two or three parts has the loss and gradients of the whole, for every method"
)
@pytest.mark.parametrize("method", EVERY)
def test_every_methods_gradients_are_those_of_the_whole_batch(method):
    for settings in (
        ClassifierSettings(margin=CosFace(scale=4.0, margin=0.1)),
        ClassifierSettings(sampled=0.4),
    ):
        whole = updated(method, settings, 1)
        for accumulate in (2, 3):
            parts = updated(method, settings, accumulate)
            torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)


@pytest.mark.reliability(2, "AdaFace's running statistics move once an update, by the whole batch")
def test_adafaces_statistics_move_once_an_update():
    adaface = ClassifierSettings(margin=AdaFace(momentum=0.5))
    whole = updated("finetune", adaface, 1)["running"]
    assert whole["norm_mean"] != AdaFace().initial()["norm_mean"]
    for accumulate in (2, 3):
        parts = updated("finetune", adaface, accumulate)["running"]
        torch.testing.assert_close(parts, whole)


def test_a_part_without_an_image_is_refused():
    from launch.config.run import RunConfig

    with pytest.raises(ValueError, match=r"training.accumulate = 5 leaves a worker no image"):
        RunConfig.model_validate(
            {
                "dataset": "d",
                "methods": {"finetune": {}},
                "training": {"batch": 8, "accumulate": 5},
                "cluster": {"workers": 2},
            }
        )
