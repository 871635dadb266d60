"""The training of what draws features in the steps that follow: a conditional WGAN."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.pipeline import PipelineSettings
from launch.execution.executor import Executor
from launch.execution.rank import RankContext
from launch.exits import Preempted
from launch.inference.embed import units
from launch.inference.worker import ShardWorker
from launch.phases.generators import (
    generator_before,
    generators_before,
    learns_images,
    wanted_generator,
)
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from launch.runs.links import link
from launch.runs.run import Chain
from monitoring.run_folder import GENERATOR_FOLDER
from trainer.adopted import AdoptedSettings
from trainer.arrays import read_embeddings, write_embeddings
from trainer.backbones import EmbedderSettings
from trainer.checkpoint import Folder
from trainer.methods.replay import Generator
from trainer.model import Model
from trainer.replay.source import CARD
from trainer.replay.wgan_folder import Wgans
from trainer.replay.wgan_footprint import turn_operations
from trainer.replay.wgan_training import WganSpec, train_wgan
from trainer.replay.wgan_updates import Features
from trainer.teacher import TeacherSettings

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class GeneratorJob:
    """What the ranks train a step's generator on."""

    chain: Chain
    step: int
    how: Wgans
    files: tuple[Path, ...]
    """The features of the step's images, by shard."""
    model: Path
    before: Path | None
    """The generator of the step before."""
    name: str
    """Of the step, for people."""
    origin: str
    """The phase's fingerprint."""


class TrainGenerator(Kind[Generator]):
    """By the finished model's features of the step's own images, which CPU actors compute, a shard
    a unit: frozen as the model is, they are the same in every epoch and on any number of ranks.
    Then the ranks train.

    Each image is seen as it is and, where training mirrors images, mirrored, too. After the last
    step, too: a run that continues this one has not got the images.
    """

    name = "train-generator"
    where = "ranks"
    prepares_next = True

    def wants(self, at: Step) -> tuple[Generator, ...]:
        want = wanted_generator(at)
        return (want,) if want is not None and isinstance(want.how, Wgans) else ()

    def inputs(self, at: Step, want: Generator) -> tuple[Phase, ...]:
        return (at.model, *generators_before(at))

    def decides(self, at: Step, want: Generator) -> Any:
        flip = at.run.config.data.augmentation.flip
        return [_how(want).settings.deciding(), flip, at.number, at.chain.seed]

    def output(self, at: Step, want: Generator) -> Output:
        return Output(at.folder / GENERATOR_FOLDER)

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run, how = phase.at, phase.at.run, _how(phase.want)
        before = generator_before(at)
        if not learns_images(at):
            assert before is not None
            how.networks(Folder.at(before))
            link(before, phase.output.path)
            return "as it was"
        part = phase.output.path.with_name(f"{GENERATOR_FOLDER}.part")
        part.mkdir(parents=True, exist_ok=True)
        files = _embedded(phase, executor, part)
        job = GeneratorJob(
            chain=at.chain,
            step=at.number,
            how=how,
            files=tuple(files),
            model=at.model.output.path.resolve(),
            before=None if before is None else before.resolve(),
            name=at.name,
            origin=phase.fingerprint,
        )
        executor.on_ranks(phase.name, train_generator, job)
        if not phase.output.complete:
            raise Preempted(phase.name)
        run.fence.check()
        shutil.rmtree(part)
        size = Folder.at(phase.output.path).card(CARD)["bytes"]
        return f"{run.benchmark.row_ends[at.number]:,} identities' features in {size / 1e6:,.1f} MB"

    def iterations(self, at: Step, want: Generator) -> int:
        return _how(want).settings.iterations(_features(at))

    def effort(self, at: Step, want: Generator) -> Effort:
        settings, run = _how(want).settings, at.run
        world = max(1, run.config.cluster.workers)
        turn = turn_operations(
            settings=settings,
            dimension=run.embedder(at.chain, at.number).dimension,
            rows=run.benchmark.row_ends[at.number],
            old=run.benchmark.rows_before(at.number),
            count=-(-settings.batch // world),
        )
        turns = self.iterations(at, want) / settings.critic_updates
        return Effort(at.number, _features(at), turns=turns, turn=tuple(turn))


def _how(want: Generator) -> Wgans:
    assert isinstance(want.how, Wgans)
    return want.how


def _features(at: Step) -> int:
    """How many features of the step's images there are to learn."""
    return len(_views(at)) * len(at.run.benchmark.steps[at.number]) if learns_images(at) else 0


def _views(at: Step) -> tuple[bool, ...]:
    """Whether an image is mirrored, in each view of it."""
    return (False, True) if at.run.config.data.augmentation.flip else (False,)


def _embedded(phase: Phase, executor: Executor, part: Path) -> list[Path]:
    """The files of the features, in the shards' order, one view after the other."""
    at, run = phase.at, phase.at.run
    model = at.model.output.path.resolve()
    shards = units(run.dataset, run.benchmark.steps[at.number])
    files, calls = [], []
    for flipped in _views(at):
        for shard, samples in shards:
            name = f"shard-{shard:05d}{'-mirrored' * flipped}.safetensors"
            files.append(part.resolve() / name)
            if not files[-1].exists():
                settings = run.config.data, run.config.teacher.batch
                calls.append((files[-1], model, samples, flipped, *settings))
    executor.map(write_features, calls)
    return files


def write_features(
    worker: ShardWorker,
    out: Path,
    model_folder: Path,
    samples: Ids,
    flipped: bool,
    data: PipelineSettings,
    batch: int,
) -> None:
    """A unit of work: writes the embeddings of `samples` [n], ascending. Damaged images are passed
    over, as training replaces them."""
    whole = np.array([image is not None for image in worker.dataset.images(samples)], dtype=bool)
    model, embedder, _ = worker.model(model_folder, TeacherSettings())
    if whole.any():
        vectors = worker.embed(embedder, samples[whole], data, batch, flipped=flipped)
    else:
        vectors = np.empty((0, model.settings.dimension), dtype=np.float32)
    worker.check()
    write_embeddings(out, samples[whole], vectors, model.fingerprint)


def train_generator(context: RankContext, job: GeneratorJob) -> None:
    """What each rank does. Raises InputError."""
    run, model = context.run, Model.open(job.model)
    context.metrics.step.set(job.step)
    held = [read_embeddings(file, model.fingerprint) for file in job.files]
    samples = np.concatenate([samples for samples, _ in held])
    vectors = torch.from_numpy(np.concatenate([vectors for _, vectors in held]))
    rows = run.benchmark.row_of_identity[run.dataset.identity[samples]]
    before = None if job.before is None else job.how.networks(Folder.at(job.before))
    spec = WganSpec(
        settings=job.how.settings,
        relu=behind_relu(model.settings),
        features=Features(vectors, rows),
        rows=run.benchmark.row_ends[job.step],
        before=before,
        seed=job.chain.seed,
        step=job.step,
        training=run.lessons(job.chain),
        output=run.step_folder(job.chain, job.step) / GENERATOR_FOLDER,
        checkpoints=run.checkpoints(job.chain, job.step, GENERATOR_FOLDER),
        name=job.name,
        origin=job.origin,
        fence=run.fence.check,
    )
    train_wgan(
        spec,
        context.ranks,
        context.device,
        context.metrics,
        report=context.report,
        tell=context.tell,
        activity=context.activity,
    )


def behind_relu(settings: EmbedderSettings | AdoptedSettings) -> bool:
    """Whether a network's embeddings are those behind a ReLU."""
    if isinstance(settings, AdoptedSettings):  # what an adopted network ends in is its own
        return False
    features = settings.projection == "none" and settings.last_relu
    return settings.activation == "relu" or (features and settings.activation == "none")
