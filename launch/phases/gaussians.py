"""A normal distribution of each identity's embeddings, to draw from in the steps that follow."""

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.pipeline import PipelineSettings, image_size
from launch.execution.executor import Executor
from launch.inference.worker import ShardWorker
from launch.phases.exemplars import whole_identities
from launch.phases.generators import (
    generator_before,
    generators_before,
    learns_images,
    wanted_generator,
)
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from monitoring.run_folder import GENERATOR_FOLDER
from trainer.arrays import read_arrays, write_arrays
from trainer.checkpoint import Folder, save_folder
from trainer.entrance import EMBEDDING, Entrance
from trainer.heads.collectives import Ranks
from trainer.methods.replay import Generator
from trainer.methods.spelling import spelled
from trainer.model import Model
from trainer.replay.drift import NEEDS as MOVEMENT
from trainer.replay.drift import moved, movement
from trainer.replay.gaussian import Covariance, Gaussians, grown, moments
from trainer.teacher import TeacherSettings

Ids = NDArray[np.int64]


class FitGaussians(Kind[Generator]):
    """By the finished model, of the step's own images as they are; some identities a unit. Those of
    earlier steps stay as they were, but that their means may be moved as the step moved the
    embeddings of its own images.

    After the last step, too: a run that continues this one has not got the images.
    """

    name = "gaussians"
    where = "actors"
    prepares_next = True

    def wants(self, at: Step) -> tuple[Generator, ...]:
        want = wanted_generator(at)
        return (want,) if want is not None and isinstance(want.how, Gaussians) else ()

    def inputs(self, at: Step, want: Generator) -> tuple[Phase, ...]:
        before = (at.at(at.number - 1).model,) if _compensates(at, want) else ()
        return (at.model, *generators_before(at), *before)

    def decides(self, at: Step, want: Generator) -> Any:
        return [spelled(want), at.number]

    def output(self, at: Step, want: Generator) -> Output:
        return Output(at.folder / GENERATOR_FOLDER)

    def effort(self, at: Step, want: Generator) -> Effort:
        images = len(at.run.benchmark.steps[at.number]) if learns_images(at) else 0
        return Effort(at.number, images * (1 + _compensates(at, want)))

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run = phase.at, phase.at.run
        how: Gaussians = phase.want.how
        part = phase.output.path.with_name(f"{GENERATOR_FOLDER}.part")
        part.mkdir(parents=True, exist_ok=True)
        model = Model.open(at.model.output.path)
        path = generator_before(at)
        before = how.state(Folder.at(path)) if path is not None else None
        files = _measured(phase, executor, part, model) if learns_images(at) else []
        if before is not None and _compensates(at, phase.want):
            movements = (read_arrays(file, model.fingerprint, MOVEMENT) for file in files)
            before["means"] = moved(before["means"], movements)
        needs = ("rows", "counts", "means", "scatter")
        parts = (read_arrays(file, model.fingerprint, needs) for file in files)
        first, last = run.benchmark.rows_before(at.number), run.benchmark.row_ends[at.number]
        state = grown(before, parts, first, last, how.covariance)
        files_and_card = how.files(state)
        save_folder(phase.output.path, *files_and_card, Ranks(), run.fence.check)
        shutil.rmtree(part)
        size = sum(tensor.nbytes for tensor in state.values())
        return f"{last:,} identities' features in {size / 1e6:,.1f} MB"


def _compensates(at: Step, want: Generator) -> bool:
    """Whether the step moves means of identities before it."""
    return want.drift == "compensated" and bool(at.number)


def _measured(phase: Phase, executor: Executor, part: Path, model: Model) -> list[Path]:
    """The files of the units' moments, in the order of the identities."""
    at, run = phase.at, phase.at.run
    compensates = _compensates(at, phase.want)
    before = at.at(at.number - 1).model.output.path.resolve() if compensates else None
    files, calls = [], []
    for number, (samples, rows) in enumerate(whole_identities(run, at.number)):
        files.append(part.resolve() / f"moments-{number:05d}.safetensors")
        if not files[-1].exists():
            given = (samples, rows, phase.want.how.covariance)
            settings = run.config.data, run.config.teacher.batch, phase.want.place
            calls.append((files[-1], model.folder.resolve(), before, *given, *settings))
    executor.map(write_moments, calls)
    return files


def write_moments(
    worker: ShardWorker,
    out: Path,
    model_folder: Path,
    before: Path | None,
    samples: Ids,
    rows: Ids,
    covariance: Covariance,
    data: PipelineSettings,
    batch: int,
    place: str = EMBEDDING,
) -> None:
    """A unit of work: writes the moments of the embeddings of `samples` [n], which are all images
    of identities with classifier `rows` [n], or of what the network makes of them at `place`; and,
    where there is a model of `before` the step, how embeddings have moved since. Damaged ones are
    passed over."""
    whole = np.array([image is not None for image in worker.dataset.images(samples)], dtype=bool)

    def embedded(folder: Path) -> tuple[Model, NDArray[np.float32]]:
        model, embedder, _ = worker.model(folder, TeacherSettings())
        dimension, seen = model.settings.dimension, embedder
        if place != EMBEDDING:
            entrance = Entrance(embedder, place, image_size(worker.dataset, data))
            dimension = math.prod(entrance.shape)

            def seen(images: torch.Tensor) -> torch.Tensor:
                return entrance.until(images).flatten(1)

        if not whole.any():
            return model, np.empty((0, dimension), dtype=np.float32)
        return model, worker.embed(seen, samples[whole], data, batch)

    model, vectors = embedded(model_folder)
    if place != EMBEDDING:
        Gaussians(covariance).check(len(np.unique(rows)), vectors.shape[1])
    arrays = moments(vectors, rows[whole], covariance)
    if before is not None:
        arrays |= movement(embedded(before)[1], vectors)
    worker.check()
    write_arrays(out, arrays, model.fingerprint)
