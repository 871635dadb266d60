"""A run: its folder, configuration and data, and what follows from them for each learning step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.settings import InputError
from data_shards.splits.benchmark import Benchmark, build_benchmark
from data_shards.splits.holding_out import check_held, held_out
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.joined import JoinedDataset, joined
from data_shards.storage.remote import Count, ignore
from launch.config.run import RunConfig
from launch.runs.continuing import first_model, known_names
from launch.runs.lease import UNFENCED, Fence
from launch.runs.model_names import model_folder
from launch.runs.test_sets import TestSet, open_tests
from monitoring.run_folder import (
    CHECKPOINTS_FOLDER,
    CLASS_MEANS_FILE,
    EXEMPLARS_FOLDER,
    MODEL_FOLDER,
    NEIGHBOURS_FOLDER,
    PHASES_FOLDER,
    TRAINED_FOLDER,
    chain_name,
    step_folder,
)
from trainer.backbones import EmbedderSettings
from trainer.decisions import Rule
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods.images import Exemplars
from trainer.methods.recipe import Recipe
from trainer.model import Model
from trainer.optimizers import TrainingSettings, schedule
from trainer.training_spec import TrainingSpec
from trainer.weights import StartSettings


@dataclass(frozen=True)
class Chain:
    """One method under one seed: its learning steps in order."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """Names the chain in folders, the ledger and metrics."""
        return chain_name(self.method, self.seed)


@dataclass(frozen=True)
class Run:
    """A run: its folder, its configuration, and the data they speak of."""

    folder: Path
    config: RunConfig
    dataset: ShardDataset
    benchmark: Benchmark
    test_sets: dict[str, TestSet]
    """Test sets of their own."""
    fence: Fence = UNFENCED
    """Checked before anything of the run is written."""

    @classmethod
    def open(
        cls, folder: Path, config: RunConfig, count: Count = ignore, fence: Fence = UNFENCED
    ) -> "Run":
        """Opens the datasets and builds the benchmark. Raises InputError.

        `count` hears what the cache of a remote dataset does.
        """
        start = config.start and config.start.pinned()
        pinned = {"benchmark": config.benchmark.pinned(), "start": start}
        config = config.model_copy(update=pinned)
        tests = open_tests(config.evaluation, config.data.cache, count)
        dataset = ShardDataset.open(config.dataset, config.data.cache, count)
        known = known_names(config, folder)
        benchmark = build_benchmark(dataset, config.benchmark, known)
        return cls(folder, config, dataset, benchmark, tests, fence)

    @cached_property
    def adopted(self) -> Model | None:
        """The verified model from outside that step 0 is taken from."""
        return Model.open(model_folder(self.config.adopted)) if self.config.adopted else None

    @cached_property
    def given(self) -> dict[Chain, Model]:
        """The verified model that step 0 of each chain is; empty where step 0 is trained."""
        if self.adopted is not None:
            return dict.fromkeys(self.chains(), self.adopted)
        if self.config.continues is None:
            return {}
        first = {c: first_model(self.config, self.folder, c.name) for c in self.chains()}
        return {chain: Model.open(path) for chain, path in first.items()}

    def chains(self) -> list[Chain]:
        """Every method under every seed; the seeds of one method follow each other last."""
        return [Chain(m, s) for s in self.config.seeds for m in self.config.methods]

    def step_folder(self, chain: Chain, step: int) -> Path:
        """Where a learning step's outputs go."""
        return step_folder(self.folder, chain.name, step)

    def recipe(self, chain: Chain, step: int) -> Recipe:
        """The chain's recipe as it applies at `step`."""
        recipe, old = self.config.methods[chain.method].recipe(), self.benchmark.rows_before(step)
        return recipe.at(step, old, new_rows=self.benchmark.row_ends[step] - old)

    def memory(self, chain: Chain) -> Exemplars | None:
        """What the chain keeps of the images of its steps."""
        return self.config.methods[chain.method].recipe().memory

    def rule(self, chain: Chain) -> Rule:
        """How the chain's models decide."""
        return self.config.methods[chain.method].recipe().predict

    def exemplars(self, chain: Chain, step: int) -> ShardDataset:
        """The exemplars that learning step `step` left. Raises InputError."""
        return ShardDataset.open(self.step_folder(chain, step) / EXEMPLARS_FOLDER)

    def training_data(self, chain: Chain, step: int) -> tuple[ShardDataset, Benchmark]:
        """What a learning step trains on: the dataset, with the exemplars of the step before where
        its recipe has a memory, and without the images that it holds out. Raises InputError."""
        recipe = self.recipe(chain, step)
        if recipe.memory is None:
            return self.dataset, self.benchmark
        data, benchmark = self.joined_data(chain, step)
        if not recipe.hold_out:
            return data, benchmark
        held = self.held_out(chain, step, data, benchmark)
        steps = list(benchmark.steps)
        steps[step] = np.setdiff1d(steps[step], held)
        exemplars = np.setdiff1d(benchmark.exemplars, held)
        return data, replace(benchmark, steps=tuple(steps), exemplars=exemplars)

    def memory_data(self, chain: Chain, step: int) -> tuple[ShardDataset, Benchmark]:
        """The exemplars alone that a learning step leaves, as its images. Raises InputError."""
        memory = self.exemplars(chain, step)
        return memory, self.benchmark.of_memory(memory, step)

    def joined_data(self, chain: Chain, step: int) -> tuple[JoinedDataset, Benchmark]:
        """The dataset with the exemplars of the step before behind it. Raises InputError."""
        data = joined(self.dataset, self.exemplars(chain, step - 1))
        return data, self.benchmark.with_exemplars(data)

    def held_out(
        self, chain: Chain, step: int, data: JoinedDataset, benchmark: Benchmark
    ) -> NDArray[np.int64]:
        """The samples of `joined_data`, ascending, that a step does not train on: as many of each
        old identity's exemplars as of each new one's images. Raises InputError."""
        samples = np.concatenate([benchmark.steps[step], benchmark.exemplars])
        return held_out(
            samples=samples,
            rows=benchmark.row_of_identity[data.identity[samples]],
            keys=data.key_hashes[samples],
            count=self.recipe(chain, step).held_each(benchmark.rows_before(step)),
            seed=chain.seed,
            names=benchmark.names,
            where=_holding(chain, step),
        )

    def previous(self, chain: Chain, step: int) -> Model | None:
        """The verified model of the step before."""
        return Model.open(self.step_folder(chain, step - 1) / MODEL_FOLDER) if step else None

    def anchor_step(self, chain: Chain, step: int) -> int:
        """The step whose model that of `step` stays compatible with."""
        return 0 if self.recipe(chain, step).anchor == "first" else step - 1

    def anchor(self, chain: Chain, step: int) -> Model | None:
        """The verified model to stay compatible with."""
        before = self.anchor_step(chain, step)
        return Model.open(self.step_folder(chain, before) / MODEL_FOLDER) if step else None

    def class_mean_rows(self, chain: Chain, step: int) -> tuple[int, int]:
        """The identities first <= r < last that `step` trains on and its anchor does not know."""
        rows, before = self.benchmark.row_ends, self.anchor_step(chain, step)
        if not self.recipe(chain, step).sees_all:
            return rows[step - 1], rows[step]
        unknowing = before == 0 and self.adopted is not None and not self.adopted.rows
        return 0 if unknowing else rows[before], rows[step]

    def training(self, chain: Chain, step: int) -> TrainingSettings:
        """The schedule of a learning step."""
        settings, recipe = self.lessons(chain), self.recipe(chain, step)
        rows, images = self.benchmark.row_ends, 0
        if settings.epochs is not None:
            images = recipe.count([len(own) for own in self.benchmark.steps], rows, step)
        return schedule(settings, images, recipe.sees_all, rows, step)

    def lessons(self, chain: Chain) -> TrainingSettings:
        """What the schedules of the chain's learning steps are made of."""
        return self.config.methods[chain.method].lessons(self.config.training)

    def embedder(self, chain: Chain, step: int) -> EmbedderSettings:
        """The network of a learning step."""
        return self.config.methods[chain.method].network(self.config.embedder, step)

    def classifier(self, chain: Chain, step: int) -> ClassifierSettings:
        """The loss of a learning step."""
        return self.config.methods[chain.method].loss(self.config.classifier, step)

    def start(self, chain: Chain, step: int) -> StartSettings | None:
        """The weights that the main training of a step begins with in place of random ones."""
        fresh = self.recipe(chain, step).start.embedder == "scratch"
        return self.config.start if fresh else None

    def training_spec(self, chain: Chain, step: int, phase: str = "") -> TrainingSpec:
        """The main training of one step, or a further one. The step before must be finished.

        A further `phase` has a folder, checkpoints and random numbers of its own; its recipe,
        embedder and the like are the main one's until they are replaced.
        """
        config, prepared = self.config, self.step_folder(chain, step)
        dataset, benchmark = self.training_data(chain, step)
        return TrainingSpec(
            dataset=dataset,
            benchmark=benchmark,
            data=config.data,
            embedder=self.embedder(chain, step),
            classifier=self.classifier(chain, step),
            training=self.training(chain, step),
            teacher=config.teacher,
            recipe=self.recipe(chain, step),
            seed=chain.seed,
            step=step,
            previous=self.previous(chain, step),
            anchor=self.anchor(chain, step),
            cache=prepared / NEIGHBOURS_FOLDER,
            class_means=prepared / CLASS_MEANS_FILE,
            folder=self.training_folder(chain, step, phase),
            checkpoints=self.checkpoints(chain, step, phase),
            phase=phase,
            start=None if phase or (start := self.start(chain, step)) is None else start.file,
            fence=self.fence.check,
        )

    def training_folder(self, chain: Chain, step: int, phase: str = "") -> Path:
        """Where a training keeps what is its own: the step's folder, or one within it.

        The step's folder is that of the training which makes the model that the step leaves.
        """
        folder = self.step_folder(chain, step)
        if not phase and self.recipe(chain, step).fine_tune is not None:
            phase = TRAINED_FOLDER
        return folder / PHASES_FOLDER / phase if phase else folder

    def checkpoints(self, chain: Chain, step: int, phase: str = "") -> str:
        """Path or URL of a training's checkpoints."""
        folder = self.training_folder(chain, step, phase)
        url = self.lessons(chain).checkpoint_url
        if url is None:
            return str(folder / CHECKPOINTS_FOLDER)
        return f"{url.rstrip('/')}/{folder.relative_to(self.folder)}/{CHECKPOINTS_FOLDER}"


def check_memory(run: Run) -> None:
    """Raises InputError when a memory has no room for an exemplar of every identity."""
    identities = run.benchmark.row_ends[-1]
    for chain in run.chains():
        memory = run.memory(chain)
        if memory is not None and not memory.share(identities):
            raise InputError(
                f"methods.{chain.method}.memory.total = {memory.total} exemplars cannot be shared "
                f"by the {identities:,} identities of the last learning step: raise it"
            )
        _check_hold_out(run, chain)


def _check_hold_out(run: Run, chain: Chain) -> None:
    """Raises InputError when a step would hold nothing of an identity out, or all of it."""
    benchmark, first = run.benchmark, bool(run.given)
    images = np.zeros(benchmark.row_ends[-1], dtype=np.int64)
    for samples in benchmark.steps:
        rows = benchmark.row_of_identity[run.dataset.identity[samples]]
        images += np.bincount(rows, minlength=len(images))
    for step in range(1, len(benchmark.row_ends)):
        recipe, old = run.recipe(chain, step), benchmark.rows_before(step)
        if recipe.memory is None or not recipe.hold_out:
            continue
        share = recipe.memory.share(old)
        kept = np.minimum(images[:old], share)
        if first:  # a given model's identities have their exemplars from elsewhere
            kept[: benchmark.row_ends[0]] = share
        check_held(
            counts=np.concatenate([kept, images[old : benchmark.row_ends[step]]]),
            count=recipe.held_each(old),
            names=benchmark.names,
            where=_holding(chain, step),
        )


def _holding(chain: Chain, step: int) -> str:
    return f"learning step {step} of methods.{chain.method}"


def check_steps(
    rows: Sequence[int], images: Sequence[int], workers: int, first_trained: int
) -> None:
    """Raises InputError when a learning step has fewer identities than workers, or no image.

    `rows` are the identities learned after each step, `images` those to train on in each; steps
    before `first_trained` are not asked.
    """
    first = 0
    for step, (last, count) in enumerate(zip(rows, images, strict=True)):
        if step < first_trained:
            first = last
            continue
        if last - first < workers:
            raise InputError(
                f"learning step {step} has {last - first} identities, fewer than cluster.workers = "
                f"{workers}: lower the workers or benchmark.steps, or raise train_identities"
            )
        if count == 0:
            raise InputError(
                f"learning step {step} has no image left to train on: lower "
                "benchmark.seen_identities or benchmark.steps"
            )
        first = last
