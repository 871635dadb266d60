"""The training of what draws features in the steps that follow: a conditional WGAN."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.pipeline import ImageStream, PipelineSettings, Request, image_size
from data_shards.settings import InputError
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
from trainer.arrays import read_arrays, read_embeddings, write_arrays, write_embeddings
from trainer.backbones import Embedder, EmbedderSettings
from trainer.blocks import blocks
from trainer.checkpoint import Folder
from trainer.entrance import EMBEDDING, IMAGE, Entrance, shape_at
from trainer.footprint import forward_operations
from trainer.methods.replay import Generator
from trainer.model import Model
from trainer.replay.source import CARD
from trainer.replay.wgan import Ends
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
    want: Generator
    files: tuple[Path, ...]
    """The features of the step's images, or these, by shard."""
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
    Then the ranks train. Of what draws images, actors decode them; so they do of what draws a
    block's output, which takes many times the memory: ranks make it as they need it.

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
        place = [] if want.place == EMBEDDING else [want.place]
        return [_how(want).settings.deciding(), flip, at.number, at.chain.seed, *place]

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
            want=phase.want,
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
        settings, run, within = _how(want).settings, at.run, want.place != EMBEDDING
        network, size = run.embedder(at.chain, at.number), run.config.data.image_size
        assert size is not None or not within, "plans know the size of images"
        shape = shape_at(network, want.place, size) if within and size else (network.dimension,)
        count = -(-settings.batch // max(1, run.config.cluster.workers))
        turn = turn_operations(
            settings=settings,
            shape=shape,
            rows=run.benchmark.row_ends[at.number],
            old=run.benchmark.rows_before(at.number),
            count=count,
        )
        if within and size and want.place != IMAGE:  # ranks make what they learn
            turn = turn + forward_operations(network, size, count) * settings.critic_updates
        turns = self.iterations(at, want) / settings.critic_updates
        return Effort(at.number, 0 if within else _features(at), turns=turns, turn=tuple(turn))


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
    executor.map(write_features if phase.want.place == EMBEDDING else write_images, calls)
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


def write_images(
    worker: ShardWorker,
    out: Path,
    model_folder: Path,
    samples: Ids,
    flipped: bool,
    data: PipelineSettings,
    batch: int,
) -> None:
    """A unit of work: writes the images of `samples` [n], ascending, as training decodes them.
    Damaged ones are passed over."""
    whole = np.array([image is not None for image in worker.dataset.images(samples)], dtype=bool)
    model, _, _ = worker.model(model_folder, TeacherSettings())
    kept = samples[whole]
    parts = [kept[first : first + batch] for first in range(0, len(kept), batch)]
    requests = (Request.plain(worker.dataset, part, flipped) for part in parts)
    images = [np.empty((0, 3, *image_size(worker.dataset, data)), dtype=np.uint8)]
    for _, own in ImageStream(worker.dataset, requests, batch, data, augmented=False):
        images.append(own.contiguous().numpy())
    worker.check()
    found = {"samples": kept, "images": np.concatenate(images)}
    write_arrays(out, found, model.fingerprint)


def train_generator(context: RankContext, job: GeneratorJob) -> None:
    """What each rank does. Raises InputError."""
    run, model, how = context.run, Model.open(job.model), _how(job.want)
    context.metrics.step.set(job.step)
    features, ends = _learned(job, model, context)
    before = None if job.before is None else how.networks(Folder.at(job.before))
    spec = WganSpec(
        how=how,
        ends=ends,
        features=features,
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


def _learned(job: GeneratorJob, model: Model, context: RankContext) -> tuple[Features, Ends]:
    """What the generator learns, and what it is behind. Raises InputError."""
    run, place = context.run, job.want.place
    if place == EMBEDDING:
        read = [read_embeddings(file, model.fingerprint) for file in job.files]
        ends: Ends = "relu" if behind_relu(model.settings) else "none"
    else:
        needs = ("samples", "images")
        arrays = [read_arrays(file, model.fingerprint, needs) for file in job.files]
        read = [(own["samples"], own["images"]) for own in arrays]
    samples = np.concatenate([samples for samples, _ in read])
    held = torch.from_numpy(np.concatenate([held for _, held in read]))
    rows = run.benchmark.row_of_identity[run.dataset.identity[samples]]
    if place == EMBEDDING:
        return Features(held, rows), ends
    embedder, settings = model.embedder(), model.settings
    if not isinstance(embedder, Embedder) or isinstance(settings, AdoptedSettings):
        raise InputError(
            f"{job.name}: what an adopted network makes of images within is not known: replay "
            "embeddings in place of what lies before them"
        )
    embedder = embedder.to(context.device)
    height, width = held.shape[2:]
    entrance = Entrance(embedder, place, (height, width))
    ends = "tanh"
    if place != IMAGE:
        last = place == [*blocks(embedder, (height, width))][-1]
        ends = "none" if last and not settings.last_relu else "relu"
    return Features(held, rows, torch.no_grad()(entrance.until)), ends


def behind_relu(settings: EmbedderSettings | AdoptedSettings) -> bool:
    """Whether a network's embeddings are those behind a ReLU."""
    if isinstance(settings, AdoptedSettings):  # what an adopted network ends in is its own
        return False
    features = settings.projection == "none" and settings.last_relu
    return settings.activation == "relu" or (features and settings.activation == "none")
