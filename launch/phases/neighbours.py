"""What the previous model says of each training image: its nearest old identities, or embedding."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.files import write_json
from data_shards.pipeline import PipelineSettings
from data_shards.storage.neighbours import VIEWS, TeacherCache, teacher_file, write_teacher_file
from launch.execution.executor import Executor
from launch.inference.embed import cut, neighbour_examples, units
from launch.inference.worker import ShardWorker
from launch.phases.exemplars import exemplars_before
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from monitoring.run_folder import NEIGHBOUR_EXAMPLES_FILE, NEIGHBOURS_FOLDER
from trainer.arrays import read_embeddings, write_embeddings
from trainer.methods.wants import Answers
from trainer.model import Model
from trainer.teacher import TeacherSettings, answers

Ids = NDArray[np.int64]
_MANY = 256
"""Shards and views that give work to all actors as they are. Fewer are embedded in parts, whose
vectors lie beside the answers until a shard is whole."""
_VECTORS = "vectors"


class Neighbours(Kind[Answers]):
    """Neighbourhood selection ahead of training (CRL paper, Sec. 4.1), by shards and views."""

    name = "neighbours"
    where = "actors"
    only_prepares = True
    implied = True
    runs_teacher = True

    def wants(self, at: Step) -> tuple[Answers, ...]:
        want = at.recipe.want(Answers) if at.run.config.teacher.mode == "cached" else None
        return (want,) if at.number and want else ()

    def inputs(self, at: Step, want: Answers) -> tuple[Phase, ...]:
        memory = exemplars_before(at) if at.recipe.memory is not None else ()
        return (at.at(at.number - 1).model, *memory)

    def decides(self, at: Step, want: Answers) -> Any:
        # the data too: bct-kd and bct-lwf want the same, of all images and of the new ones
        teacher = at.run.config.deciding()["teacher"]
        recipe = at.recipe
        return [recipe.spelled_needs(), recipe.spelled_images(), at.number, teacher]

    def identity(self, at: Step, want: Answers) -> Any:
        previous, *memory = (phase.fingerprint for phase in self.inputs(at, want))
        return [self.name, previous, *self.decides(at, want), *memory]

    def output(self, at: Step, want: Answers) -> Output:
        return Output(at.folder / NEIGHBOURS_FOLDER)

    def effort(self, at: Step, want: Answers) -> Effort:
        return Effort(at.number - 1, images_asked(at) * len(views_of(at)))

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run, config, want = phase.at, phase.at.run, phase.at.run.config, phase.want
        previous = run.previous(at.chain, at.number)
        assert previous is not None
        dataset, benchmark = run.training_data(at.chain, at.number)
        samples = at.recipe.samples(benchmark, at.number)
        output, part = phase.output.path, ask(phase, executor, previous, want)
        if want.top_k is not None:
            cache = TeacherCache(
                part, len(dataset.manifest["shards"]), VIEWS[:1], previous.fingerprint
            )
            examples = neighbour_examples(
                dataset=dataset,
                benchmark=benchmark,
                cache=cache,
                samples=samples,
                count=config.evaluation.examples,
            )
            run.fence.check()
            write_json(output.with_name(NEIGHBOUR_EXAMPLES_FILE), examples)
        run.fence.check()
        shutil.rmtree(output, ignore_errors=True)  # of other settings
        part.rename(output)
        return ""


def ask(phase: Phase, executor: Executor, model: Model, wanted: Answers) -> Path:
    """Has `model` asked about each image that the phase's step trains on, in every view.

    Exemplars are those of the phase's second input, if it has one. Returns the folder of teacher
    files, beside the phase's output, which it is to become.
    """
    at, run, config = phase.at, phase.at.run, phase.at.run.config
    dataset, benchmark = run.training_data(at.chain, at.number)
    samples = at.recipe.samples(benchmark, at.number)
    memory = next((p.output.path.resolve() for p in phase.inputs[1:]), None)
    part = phase.output.path.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    folder, out, batch = model.folder.resolve(), part.resolve(), config.teacher.batch
    given = (config.data, config.teacher, memory)
    shards = [(shard, own, cut(own, batch)) for shard, own in units(dataset, samples)]
    few = len(shards) * len(views_of(at)) < _MANY
    in_parts = few and any(len(pieces) > 1 for _, _, pieces in shards)
    embed_first: list[tuple[Any, ...]] = []
    answer: list[tuple[Any, ...]] = []
    for shard, own, pieces in shards:
        for view in views_of(at):
            if teacher_file(part, shard, view).exists():
                continue
            if not in_parts:
                answer.append((folder, out, shard, view, own, wanted, *given))
                continue
            files = [out / _VECTORS / f"{view}-{p[0]}-{len(p)}.safetensors" for p in pieces]
            embed_first += [
                (folder, file, view, piece, *given)
                for file, piece in zip(files, pieces, strict=True)
                if not file.exists()
            ]
            answer.append((folder, out, shard, view, None, wanted, *given, files))
    for unit, calls in ((write_vectors, embed_first), (write_answers, answer)):
        if calls:
            executor.map(unit, calls)
    shutil.rmtree(out / _VECTORS, ignore_errors=True)
    return part


def images_asked(at: Step) -> int:
    """How many images a step trains on, for plans."""
    benchmark = at.run.benchmark
    return at.recipe.count([len(s) for s in benchmark.steps], benchmark.row_ends, at.number)


def views_of(at: Step) -> tuple[str, ...]:
    return VIEWS if at.run.config.data.augmentation.flip else VIEWS[:1]


def write_vectors(
    worker: ShardWorker,
    model_folder: Path,
    out: Path,
    view: str,
    samples: Ids,
    data: PipelineSettings,
    settings: TeacherSettings,
    memory: Path | None,
) -> None:
    """A unit of work: embeds a part of a shard in one view, and writes that to the file `out`."""
    vectors = _embedded(worker, model_folder, view, samples, data, settings, memory)
    worker.check()
    write_embeddings(out, samples, vectors, worker.model(model_folder, settings)[0].fingerprint)


def write_answers(
    worker: ShardWorker,
    model_folder: Path,
    out: Path,
    shard: int,
    view: str,
    samples: Ids | None,
    wanted: Answers,
    data: PipelineSettings,
    settings: TeacherSettings,
    memory: Path | None = None,
    embedded: Sequence[Path] = (),
) -> None:
    """A unit of work: writes what the model says of one shard's `samples` in one view.

    Where they are None, they and their embeddings are those of the files `embedded`. A shard's
    activations are always one product of matrices: in parts they would have other last bits. The
    exemplars in the folder `memory` are numbered behind the dataset.
    """
    model, _, rows = worker.model(model_folder, settings)
    if samples is None:
        read = [read_embeddings(file, model.fingerprint) for file in embedded]
        samples, vectors = (np.concatenate(of_parts) for of_parts in zip(*read, strict=True))
    else:
        vectors = _embedded(worker, model_folder, view, samples, data, settings, memory)
    tensors = answers(torch.from_numpy(vectors), rows, model.classifier, wanted)
    worker.check()
    write_teacher_file(
        teacher_file(out, shard, view), {"samples": samples, **tensors}, model.fingerprint
    )


def _embedded(
    worker: ShardWorker,
    model_folder: Path,
    view: str,
    samples: Ids,
    data: PipelineSettings,
    settings: TeacherSettings,
    memory: Path | None,
) -> NDArray[np.float32]:
    return worker.embed(
        *(worker.model(model_folder, settings)[1], samples, data, settings.batch),
        dataset=worker.with_exemplars(memory),
        flipped=view == VIEWS[1],
    )
