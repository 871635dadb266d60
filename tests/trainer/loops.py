"""Two learning steps of any method on the small dataset, in this process or on ranks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards.augmentation import AugmentationSettings
from data_shards.pipeline import PipelineSettings
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset
from launch.inference.embed import embed
from monitoring.metrics import Metrics
from trainer.activity import Activity
from trainer.backbones import EmbedderSettings
from trainer.checkpoint import Fence, save_folder, unfenced
from trainer.class_means import class_means, class_sums, write_class_means
from trainer.engine import ensure_process_group
from trainer.entrance import shape_at
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings
from trainer.importance import Consolidated
from trainer.loop import LOG, train
from trainer.methods import METHODS
from trainer.methods.combination import Combination
from trainer.methods.distillation import FlexibleDistillation
from trainer.methods.importance import Importance, consolidated_files
from trainer.methods.mergan import MemoryReplayGAN
from trainer.methods.replay import GenerativeFeatureReplay, Generator
from trainer.methods.wants import ClassMeans
from trainer.model import Model
from trainer.optimizers import TrainingSettings, for_all_data
from trainer.replay.gaussian import Gaussians, grown, moments
from trainer.replay.wgan import Wgan
from trainer.replay.wgan_settings import ConvWganSettings
from trainer.teacher import TeacherSettings
from trainer.training_spec import TrainingSpec

_ASKING = ("fkd", "combination", "icarl", "lucir", "bic", "mergan")
"""Methods that are chosen with settings; those that ask for a memory have tests of their own."""
GAN = ConvWganSettings(width=2, noise=4)
ALL = {
    **{name: method() for name, method in METHODS.items() if name not in _ASKING},
    "gfr-released": GenerativeFeatureReplay(weighting="released", batch_norm="held"),
    "gfr-block": GenerativeFeatureReplay(at="block 2", generator="wgan", block_wgan=GAN),
    "mergan": MemoryReplayGAN(gan=GAN),
    "basic": FlexibleDistillation(neighbours=None, relaxation=0.0),
    "basic+ns": FlexibleDistillation(neighbours=5, relaxation=0.0),
    "basic+cr": FlexibleDistillation(neighbours=None, relaxation=0.05),
    "fkd": FlexibleDistillation(neighbours=5, relaxation=0.05),
    "fkd+replay": Combination(of={"fkd": {"neighbours": 5}, "replay": {"rows": "frozen"}}),
    "fkd+bct-sys": Combination(of={"fkd": {"neighbours": 5, "relaxation": 0.05}, "bct-sys": {}}),
    "basic+bct-sys": Combination(of={"fkd": {"neighbours": None}, "bct-sys": {}}),
}

LINEAR = ClassifierSettings()


class Interrupted(Exception):
    """Raised in the middle of training."""


def spec_of(
    dataset: Path,
    out: Path,
    method: str,
    step: int,
    iterations: int = 12,
    classifier: ClassifierSettings = LINEAR,
    seed: int = 0,
    terms: tuple[Any, ...] | None = None,
    fence: Fence = unfenced,
    phase: str = "",
    **overrides: Any,
) -> TrainingSpec:
    """What `train_step` trains by."""
    opened = ShardDataset.open(dataset)
    benchmark = build_benchmark(
        opened, BenchmarkSettings(steps=2, test_identities=24, pairs=40, seen_identities=6)
    )
    schedule = {"batch": 20, "milestones": (8,), "checkpoint_every": 5, "log_every": 2}
    settings = TrainingSettings(**{**schedule, "iterations": iterations, **overrides})
    old = benchmark.rows_before(step)
    recipe = ALL[method].recipe().at(step, old, benchmark.row_ends[step] - old)
    if terms is not None:
        recipe = replace(recipe, terms=terms)
    previous = Model.open(out / "0" / "model") if step else None
    return TrainingSpec(
        dataset=opened,
        benchmark=benchmark,
        data=PipelineSettings(augmentation=AugmentationSettings(flip=True, shift=1)),
        embedder=EmbedderSettings(width=4, dimension=8),
        classifier=classifier,
        training=for_all_data(settings, benchmark.row_ends, step) if recipe.sees_all else settings,
        teacher=TeacherSettings(mode="online"),
        recipe=recipe,
        seed=seed,
        step=step,
        previous=previous,
        anchor=previous,
        cache=out / str(step) / "neighbours",
        class_means=out / str(step) / "prototypes.safetensors",
        folder=out / str(step),
        checkpoints=f"{settings.checkpoint_url}/{step}" if settings.checkpoint_url else "",
        phase=phase,
        fence=fence,
    )


def any_importance(embedder: torch.nn.Module) -> Consolidated:
    """Any will do here: how they are measured is tested elsewhere."""
    parameters = {name: p.detach() for name, p in embedder.named_parameters()}
    return Consolidated({name: p.square() for name, p in parameters.items()}, parameters)


def any_generator(rows: int, dimension: int, how: Gaussians) -> dict[str, torch.Tensor]:
    """The state of one that draws features of no network's."""
    vectors = np.random.default_rng(0).normal(size=(3 * rows, dimension)).astype(np.float32)
    part = moments(vectors, np.repeat(np.arange(rows), 3), how.covariance)
    return grown(None, [part], 0, rows, how.covariance)


def any_images(rows: int, shape: tuple[int, ...]) -> Wgan:
    """Networks that draw noise of `shape` in place of images, or of what a block makes of them."""
    return Wgan.new(GAN.shape_for(shape, "tanh"), rows, None, seed=0, step=0)


def train_step(
    dataset: Path,
    out: Path,
    method: str,
    step: int,
    iterations: int = 12,
    stop_at: int | None = None,
    classifier: ClassifierSettings = LINEAR,
    seed: int = 0,
    metrics: Metrics | None = None,
    tell: Callable[[str], None] = LOG.warning,
    losses: list[float] | None = None,
    terms: tuple[Any, ...] | None = None,
    events: list[dict[str, Any]] | None = None,
    records: list[dict[str, Any]] | None = None,
    preempt_at: int | None = None,
    fence: Fence = unfenced,
    phase: str = "",
    count: Callable[[str, float], None] = lambda what, seconds: None,
    **overrides: Any,
) -> list[float]:
    """Trains one step with an online teacher; returns the losses of every second iteration.

    `stop_at` raises Interrupted at that iteration instead of going on, when `losses` has
    them; `preempt_at` asks the last rank for a stop. `terms` replace the recipe's; `events` and
    `records` take what was reported; `fence` and `phase` are the spec's; `count` hears what was
    done how long; `overrides` are training settings.
    """
    torch.set_num_threads(1)
    ensure_process_group()
    spec = spec_of(
        dataset,
        out,
        method,
        step,
        iterations,
        classifier,
        seed,
        terms,
        fence,
        phase,
        **overrides,
    )
    recipe, benchmark, previous = spec.recipe, spec.benchmark, spec.previous
    if recipe.want(ClassMeans) and previous is not None:
        samples = benchmark.step_samples(step, all_so_far=False)
        vectors = embed(previous.embedder(), spec.dataset, samples, PipelineSettings(), 16)
        rows = benchmark.row_of_identity[spec.dataset.identity[samples]]
        sums = class_sums(vectors, rows)
        means = class_means([sums], previous.rows, benchmark.row_ends[step])
        write_class_means(spec.class_means, means, previous.fingerprint)
    losses = [] if losses is None else losses
    ranks, activity = Ranks.default(), Activity(count)
    if (wanted := recipe.want(Importance)) is not None and previous is not None:
        folder = out / str(step) / "importance"
        files, card = consolidated_files(any_importance(previous.embedder()), wanted.of)
        save_folder(folder, files if ranks.rank == 0 else {}, card, ranks)
        spec = replace(spec, prepared={Importance: folder})

    if (drawn := recipe.want(Generator)) is not None and previous is not None:
        folder, dimension = out / str(step) / "generator", previous.settings.dimension
        if isinstance(drawn.how, Gaussians):
            files, card = drawn.how.files(any_generator(previous.rows, dimension, drawn.how))
        else:
            assert isinstance(previous.settings, EmbedderSettings) and previous.image_size
            shape = shape_at(previous.settings, drawn.place, previous.image_size)
            files, card = drawn.how.files(any_images(previous.rows, shape), "any")
        save_folder(folder, files if ranks.rank == 0 else {}, card, ranks)
        spec = replace(spec, prepared={Generator: folder})

    def report(record: dict[str, Any]) -> None:
        if "event" in record:
            (events if events is not None else []).append(record)
            return
        (records if records is not None else []).append(record)
        losses.append(record["loss"])
        asked = preempt_at is not None and record["iteration"] >= preempt_at
        if asked and ranks.rank == ranks.world - 1:
            activity.stop.set()
        if stop_at is not None and record["iteration"] >= stop_at:
            raise Interrupted

    device = torch.device("cpu")
    train(spec, ranks, device, metrics or Metrics(), report, tell, activity)
    return losses
