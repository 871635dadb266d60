"""What a training phase is given: everything that decides its result."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.counter_rng import stream_key
from data_shards.orders.order import make_order
from data_shards.pipeline import Batch, PipelineSettings, training_batches
from data_shards.quarantine import Quarantine
from data_shards.splits.benchmark import Benchmark
from data_shards.storage.dataset import ShardDataset
from trainer.backbones import EmbedderSettings
from trainer.checkpoint import Fence, unfenced
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods.recipe import Recipe
from trainer.model import Model
from trainer.optimizers import TrainingSettings
from trainer.teacher import TeacherSettings


@dataclass(frozen=True)
class TrainingSpec:
    """Everything that decides a training phase's result."""

    dataset: ShardDataset
    benchmark: Benchmark
    data: PipelineSettings
    embedder: EmbedderSettings
    classifier: ClassifierSettings
    training: TrainingSettings
    teacher: TeacherSettings
    recipe: Recipe
    """As it applies at this step (`Recipe.at`)."""
    seed: int
    step: int
    previous: Model | None
    """The model of the step before; none at step 0."""
    anchor: Model | None
    """The model to stay compatible with; none at step 0."""
    cache: Path
    """Folder of the cached teacher's files."""
    class_means: Path
    """File of the rows synthesised for identities that the anchor does not know."""
    folder: Path
    """Where the model goes, and what the training keeps beside it: rewinds, quarantine."""
    checkpoints: str = ""
    """Path or fsspec URL of its checkpoints, and no other training's; empty: in `folder`."""
    phase: str = ""
    """Names a further training of the step, such as an expert's; empty: the step's main one."""
    origin: str = ""
    """Names the result: equal for trainings that make the same model. A model that lies there
    already, from an attempt that ended before it could say so, is then not trained again. Empty:
    it is."""
    prepared: Mapping[type, Path] = field(default_factory=dict)
    """What phases before left for the recipe's Terms, by the class of the want."""
    begins: Model | None = None
    """The model of this very step that is trained on: its weights, and its rows of all identities.
    None: the recipe says what the training starts with."""
    extractor: Model | None = None
    """Whose network the training starts with, where it knows other classes; none: the recipe
    says."""
    start: Path | None = None
    """A file of weights that the network begins with, in place of random ones."""
    fence: Fence = unfenced
    """Called before anything is written; raises when this process may not any more."""


def training_samples(spec: TrainingSpec) -> NDArray[np.int64]:
    """The dataset rows [n] that the phase trains on."""
    return spec.recipe.samples(spec.benchmark, spec.step)


def spec_seed(spec: TrainingSpec, use: str) -> int:
    """A seed of 63 bits for one `use` of the training: no other training of the run has it."""
    further = [spec.phase] if spec.phase else []
    return int(stream_key(spec.seed, use, spec.step, *further) >> 1)


def batches_from(
    spec: TrainingSpec, start: int, ranks: Ranks, device: torch.device, quarantine: Quarantine
) -> Iterator[Batch]:
    """This rank's batches from iteration `start` on."""
    seed = spec_seed(spec, "order")
    dataset, batch = spec.dataset, spec.training.batch
    return training_batches(
        dataset=dataset,
        rows=spec.benchmark.row_of_identity,
        order=make_order(
            settings=spec.data.order,
            samples=training_samples(spec),
            identity=dataset.identity,
            shard=dataset.shard,
            batch=batch,
            seed=seed,
        ),
        seed=seed,
        iterations=range(start, spec.training.iterations),
        batch=batch,
        rank=ranks.rank,
        world=ranks.world,
        settings=spec.data,
        device=device,
        quarantine=quarantine,
    )
