"""Rows for identities that the old classifier lacks: class means of the old model's embeddings."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from data_shards.pipeline import PipelineSettings
from launch.execution.executor import Executor
from launch.inference.embed import units
from launch.inference.worker import ShardWorker
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from monitoring.run_folder import CLASS_MEANS_FILE
from trainer.class_means import class_means, class_sums, read_sums, write_class_means, write_sums
from trainer.methods.wants import ClassMeans
from trainer.model import Model
from trainer.teacher import TeacherSettings

Ids = NDArray[np.int64]


class ClassMeansOfOld(Kind[ClassMeans]):
    """The synthesised rows of BCT-sys (BCT paper, Sec. 2.5), a shard a unit."""

    name = "prototypes"
    """As runs of before this field's word was chosen have it in their ledgers and files."""
    where = "actors"
    only_prepares = True
    implied = True
    runs_teacher = True

    def wants(self, at: Step) -> tuple[ClassMeans, ...]:
        want = at.recipe.want(ClassMeans)
        return (want,) if at.number and want else ()

    def inputs(self, at: Step, want: ClassMeans) -> tuple[Phase, ...]:
        return (at.at(at.run.anchor_step(at.chain, at.number)).model,)

    def decides(self, at: Step, want: ClassMeans) -> Any:
        rows = at.run.class_mean_rows(at.chain, at.number)
        return [rows, at.number, at.run.config.deciding()["teacher"]]

    def identity(self, at: Step, want: ClassMeans) -> Any:
        (anchor,) = self.inputs(at, want)
        return [self.name, anchor.fingerprint, *self.decides(at, want)]

    def output(self, at: Step, want: ClassMeans) -> Output:
        return Output(at.folder / CLASS_MEANS_FILE)

    def effort(self, at: Step, want: ClassMeans) -> Effort:
        benchmark, (first, _) = at.run.benchmark, at.run.class_mean_rows(at.chain, at.number)
        asked = [t for t in range(at.number + 1) if benchmark.rows_before(t) >= first]
        images = sum(len(benchmark.steps[t]) for t in asked)
        return Effort(at.run.anchor_step(at.chain, at.number), images)

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run = phase.at, phase.at.run
        anchor = run.anchor(at.chain, at.number)
        assert anchor is not None
        means = means_of(
            phase=phase,
            executor=executor,
            model=anchor,
            samples=run.benchmark.step_samples(at.number, all_so_far=True),
            span=run.class_mean_rows(at.chain, at.number),
        )
        run.fence.check()
        write_class_means(phase.output.path, means, anchor.fingerprint)
        shutil.rmtree(part_of(phase))
        return f"{len(means):,} rows"


def means_of(
    phase: Phase,
    executor: Executor,
    model: Model,
    samples: Ids,
    span: tuple[int, int],
    unit: bool = False,
    memory: Path | None = None,
) -> NDArray[np.float32]:
    """The mean embedding by `model` of each row first <= r < last of the `span`: [last - first, d].

    Of its images among `samples` [n], and with `unit` of their embeddings' directions. Exemplars
    in the folder `memory` are numbered behind the dataset. What is done is kept in `part_of` the
    phase, which may go once its output is there.
    """
    run, config, (first, last) = phase.at.run, phase.at.run.config, span
    dataset, benchmark = run.dataset, run.benchmark
    if memory is not None:
        dataset, benchmark = run.joined_data(phase.at.chain, phase.at.number)
    part = part_of(phase)
    part.mkdir(parents=True, exist_ok=True)
    folder = model.folder.resolve()
    row_of = benchmark.row_of_identity[dataset.identity]
    shards = units(dataset, samples[row_of[samples] >= first])
    files = [part.resolve() / f"shard-{shard:05d}.safetensors" for shard, _ in shards]
    calls = [
        (folder, file, own, row_of[own], config.data, config.teacher, unit, memory)
        for file, (_, own) in zip(files, shards, strict=True)
        if not file.exists()
    ]
    executor.map(write_class_sums, calls)
    # merged in the shards' order: the same sums whatever the number of workers
    return class_means((read_sums(file, model.fingerprint) for file in files), first, last)


def part_of(phase: Phase) -> Path:
    """The folder of a phase's units that are done."""
    return phase.output.path.with_suffix(".part")


def write_class_sums(
    worker: ShardWorker,
    model_folder: Path,
    out: Path,
    samples: Ids,
    rows: Ids,
    data: PipelineSettings,
    settings: TeacherSettings,
    unit: bool = False,
    memory: Path | None = None,
) -> None:
    """A unit of work: the sums of the embeddings of `samples` [n] by their rows [n].

    With `unit`, each embedding is divided by its length first.
    """
    model, embedder, _ = worker.model(model_folder, settings)
    images = worker.with_exemplars(memory)
    vectors = worker.embed(embedder, samples, data, settings.batch, dataset=images)
    if unit:
        vectors = F.normalize(torch.from_numpy(vectors)).numpy()
    worker.check()
    write_sums(out, class_sums(vectors, rows), model.fingerprint)
