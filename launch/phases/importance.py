"""How much each parameter matters to what was learned so far, for the next step (EWC, MAS)."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.pipeline import ImageStream, PipelineSettings, Request
from launch.execution.executor import Executor
from launch.inference.embed import units
from launch.inference.worker import ShardWorker
from launch.phases.exemplars import exemplars_before
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from launch.runs.continuing import carried_importance
from monitoring.run_folder import IMPORTANCE_FOLDER
from trainer.checkpoint import save_folder
from trainer.heads.collectives import Ranks
from trainer.importance import (
    Consolidated,
    Measure,
    Unfinished,
    consolidated,
    importance_sums,
    num_values,
    read_sums,
    write_sums,
)
from trainer.methods.importance import Importance, consolidated_files
from trainer.methods.spelling import spelled
from trainer.model import Model
from trainer.row_layout import row_blocks
from trainer.teacher import TeacherSettings

Ids = NDArray[np.int64]
_BATCH = 64
"""Images decoded at a time; no result depends on it."""
_PASSES = 1024
"""Backward passes of a unit of work, at most, unless one image takes more. No result depends on it,
and a stop waits for a unit."""
_CPU = torch.device("cpu")


class ParameterImportance(Kind[Importance]):
    """The finished model's, on the images that it was trained on, as they are; a part of a shard a
    unit.

    After the last step, too: a run that continues this one has not got the images.
    """

    name = "importance"
    where = "actors"
    prepares_next = True

    def wants(self, at: Step) -> tuple[Importance, ...]:
        # of the whole recipe: step 0 has no such Term itself, the one after it has
        want = at.run.config.methods[at.chain.method].recipe().want(Importance)
        return () if want is None else (want,)

    def inputs(self, at: Step, want: Importance) -> tuple[Phase, ...]:
        before = at.at(at.number - 1).phases if at.number else ()
        memory = exemplars_before(at) if at.recipe.memory is not None else ()
        return (at.model, *(p for p in before if isinstance(p.kind, ParameterImportance)), *memory)

    def decides(self, at: Step, want: Importance) -> Any:
        return [spelled(want), at.number]

    def output(self, at: Step, want: Importance) -> Output:
        return Output(at.folder / IMPORTANCE_FOLDER)

    def effort(self, at: Step, want: Importance) -> Effort:
        if not _learns_images(at):
            return Effort()
        benchmark = at.run.benchmark
        images = at.recipe.count([len(s) for s in benchmark.steps], benchmark.row_ends, at.number)
        return Effort(at.number, images, images * num_values(want.of, len(_head(at))))

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run = phase.at, phase.at.run
        part = phase.output.path.with_name(f"{IMPORTANCE_FOLDER}.part")
        part.mkdir(parents=True, exist_ok=True)
        model = Model.open(at.model.output.path)
        known = _before(phase)
        files = _summed(phase, executor, part, model) if _learns_images(at) else []
        parameters = {name: p.detach() for name, p in model.embedder().named_parameters()}
        sums = (read_sums(file, model.fingerprint) for file in files)
        before = known.importance if known is not None else None
        found, count = consolidated(sums, parameters, before)
        files_and_card = consolidated_files(found, phase.want.of)
        save_folder(phase.output.path, *files_and_card, Ranks(), run.fence.check)
        shutil.rmtree(part)
        return f"{sum(p.numel() for p in parameters.values()):,} parameters by {count:,} images"


def _learns_images(at: Step) -> bool:
    """A run that continues another has no image of its step 0."""
    return bool(at.number) or at.run.config.continues is None


def _head(at: Step) -> range:
    """The rows that the step's own softmax was over."""
    benchmark = at.run.benchmark
    old, last = benchmark.rows_before(at.number), benchmark.row_ends[at.number]
    return row_blocks(at.recipe, old, last)["current"].rows


def _before(phase: Phase) -> Consolidated | None:
    """What the step began with; of a run that continues another, what that one's last step left."""
    at, want = phase.at, phase.want
    if not at.number:
        if at.run.config.continues is None:
            return None
        path = carried_importance(at.run.config, at.chain.name)
    else:
        (path,) = (p.output.path for p in phase.inputs if isinstance(p.kind, ParameterImportance))
    loaded: Consolidated = want.load(path, Ranks(), _CPU)
    return loaded


def _summed(phase: Phase, executor: Executor, part: Path, model: Model) -> list[Path]:
    """The files of the units' sums, in the shards' order."""
    at, run = phase.at, phase.at.run
    dataset, benchmark = run.training_data(at.chain, at.number)
    recipe, head = at.recipe, _head(at)
    shards = units(dataset, recipe.samples(benchmark, at.number))
    files = [part.resolve() / f"{phase.want.of}-{shard:05d}.safetensors" for shard, _ in shards]
    memory = None
    if recipe.memory is not None:
        memory = next((p.output.path.resolve() for p in exemplars_before(at)), None)
    row_of = benchmark.row_of_identity[dataset.identity]
    most = max(1, _PASSES // num_values(phase.want.of, len(head)))
    calls = {
        file: (
            *(file, model.folder.resolve(), own, row_of[own], head, phase.want.of),
            *(run.config.data, most, memory),
        )
        for file, (_, own) in zip(files, shards, strict=True)
    }
    # The shards' parts in turn: each part goes on from the sums of the one before, so that where
    # they are cut changes no bit.
    while left := [call for file, call in calls.items() if not file.exists()]:
        executor.map(write_importance, left)
    return files


def write_importance(
    worker: ShardWorker,
    out: Path,
    model_folder: Path,
    samples: Ids,
    rows: Ids,
    head: range,
    measure: Measure,
    data: PipelineSettings,
    most: int,
    memory: Path | None = None,
) -> None:
    """A unit of work: the next part, `most` samples at most, of the sums over a shard's `samples`
    [n] with classifier `rows` [n]. The last part writes them to `out`, others beside it.

    The model's answer is its logits on the rows of `head`. The exemplars in the folder `memory` are
    numbered behind the dataset. Damaged images are passed over, as training replaces them.
    """
    model, embedder, frozen = worker.model(model_folder, TeacherSettings())
    weight = frozen.weight.detach()[head.start : head.stop]
    beside = out.with_suffix(".part")
    before = Unfinished.read(beside, model.fingerprint) if beside.exists() else Unfinished()
    own = slice(before.passed, before.passed + most)
    dataset, last = worker.with_exemplars(memory), own.stop >= len(samples)
    samples, rows = samples[own], rows[own]
    whole = np.array([image is not None for image in dataset.images(samples)], dtype=bool)
    samples, places = samples[whole], torch.from_numpy(rows[whole] - head.start)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        firsts = range(0, len(samples), _BATCH)
        requests = (Request.plain(dataset, samples[i : i + _BATCH]) for i in firsts)
        stream = ImageStream(dataset, requests, _BATCH, data, augmented=False)
        for first, (_, images) in zip(firsts, stream, strict=True):
            yield images, places[first : first + _BATCH]

    sums = importance_sums(
        *(embedder, lambda vectors: model.classifier.inputs(vectors) @ weight.T, measure),
        *(batches(), before.sums),
    )
    count = before.count + len(samples)
    worker.check()
    if last:
        write_sums(out, sums, count, model.fingerprint)
        beside.unlink(missing_ok=True)
    else:
        Unfinished(sums, count, own.stop).write(beside, model.fingerprint)
