"""Rows for identities that the old classifier lacks: class means of the old model's embeddings."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.pipeline import PipelineSettings
from launch.execution.executor import Executor
from launch.inference.embed import units
from launch.inference.worker import ShardWorker
from launch.phases.kind import Kind, Output, Phase, Step
from monitoring.run_folder import CLASS_MEANS_FILE
from trainer.class_means import class_means, class_sums, read_sums, write_class_means, write_sums
from trainer.methods.wants import ClassMeans
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

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run, config = phase.at, phase.at.run, phase.at.run.config
        anchor = run.anchor(at.chain, at.number)
        assert anchor is not None
        part = phase.output.path.with_name("prototypes.part")
        part.mkdir(parents=True, exist_ok=True)
        model = anchor.folder.resolve()
        row_of = run.benchmark.row_of_identity[run.dataset.identity]
        first, last = run.class_mean_rows(at.chain, at.number)
        samples = run.benchmark.step_samples(at.number, all_so_far=True)
        shards = units(run.dataset, samples[row_of[samples] >= first])
        files = [part.resolve() / f"shard-{shard:05d}.safetensors" for shard, _ in shards]
        calls = [
            (model, file, own, row_of[own], config.data, config.teacher)
            for file, (_, own) in zip(files, shards, strict=True)
            if not file.exists()
        ]
        executor.map(write_class_sums, calls)
        # merged in the shards' order: the same sums whatever the number of workers
        sums = (read_sums(file, anchor.fingerprint) for file in files)
        means = class_means(sums, first, last)
        run.fence.check()
        write_class_means(phase.output.path, means, anchor.fingerprint)
        shutil.rmtree(part)
        return f"{len(means):,} rows"


def write_class_sums(
    worker: ShardWorker,
    model_folder: Path,
    out: Path,
    samples: Ids,
    rows: Ids,
    data: PipelineSettings,
    settings: TeacherSettings,
) -> None:
    """A unit of work: the sums of the embeddings of `samples` [n] by their rows [n]."""
    model, embedder, _ = worker.model(model_folder, settings)
    vectors = worker.embed(embedder, samples, data, settings.batch)
    worker.check()
    write_sums(out, class_sums(vectors, rows), model.fingerprint)
