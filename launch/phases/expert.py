"""The temporary expert of discriminative distillation: its two trainings, and what it says."""

import shutil
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.counter_rng import stream_key
from launch.execution.executor import Executor
from launch.execution.rank import RankContext
from launch.exits import Preempted
from launch.phases.exemplars import exemplars_before
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from launch.phases.neighbours import ask, images_asked, views_of
from launch.phases.similar import SimilarClasses
from launch.phases.train import train_on_rank
from launch.runs.run import Chain, Run
from monitoring.run_folder import EXPERT_ANSWERS_FOLDER, MODEL_FOLDER
from trainer.arrays import read_arrays
from trainer.exemplars import balanced
from trainer.footprint import embedder_footprint, head_footprint
from trainer.methods.discriminative import Expert, ExpertAnswers, ExpertSettings, classes
from trainer.methods.fine_tuning import Lessons
from trainer.methods.recipe import Recipe, Start
from trainer.methods.terms import Classify
from trainer.methods.wants import Answers
from trainer.model import Model
from trainer.optimizers import TrainingSettings, schedule
from trainer.training_spec import TrainingSpec

RECIPE = Recipe(start=Start(embedder="scratch"), terms=(Classify(),))
"""Of an expert that starts at random."""


@dataclass(frozen=True)
class First:
    """An expert's first training."""

    how: ExpertSettings


@dataclass(frozen=True)
class ExpertJob:
    """Which expert the ranks train."""

    chain: Chain
    step: int
    phase: str
    how: ExpertSettings
    rows: Path
    """Of the classes that it learns, see `SimilarClasses`."""
    begins: Path | None
    """Its model after the first training; none: this is the first."""
    origin: str
    """The phase's fingerprint."""


class _Training(Kind[Any]):
    where = "ranks"
    only_prepares = True

    def inputs(self, at: Step, want: Any) -> tuple[Phase, ...]:
        own = next(p for p in at.phases if isinstance(p.kind, SimilarClasses))
        memory = exemplars_before(at) if at.recipe.memory is not None else ()
        return (own, *memory)

    def decides(self, at: Step, want: Any) -> Any:
        run, chain, deciding = at.run, at.chain, at.run.config.deciding()
        settings = self.lessons(want.how).lessons(run.lessons(chain)).deciding()
        network = [
            run.embedder(chain, at.number).deciding(),
            run.classifier(chain, at.number).deciding(),
        ]
        images = [deciding["benchmark"], deciding["data"], at.recipe.spelled_images()]
        return [images, settings, network, want.how.start, chain.seed, at.number]

    def output(self, at: Step, want: Any) -> Output:
        return Output(at.run.training_folder(at.chain, at.number, self.name) / MODEL_FOLDER)

    def temporary(self, want: Any) -> bool:
        return not want.how.keep

    @abstractmethod
    def lessons(self, how: ExpertSettings) -> Lessons:
        """Of the two trainings this one."""

    def work(self, phase: Phase, executor: Executor) -> str:
        outputs = {type(p.kind): p.output.path.resolve() for p in phase.inputs}
        job = ExpertJob(
            chain=phase.at.chain,
            step=phase.at.number,
            phase=self.name,
            how=phase.want.how,
            rows=outputs[SimilarClasses],
            begins=outputs.get(TrainExpertOnAll),
            origin=phase.fingerprint,
        )
        executor.on_ranks(phase.name, train_expert, job)
        if not phase.output.complete:
            raise Preempted(phase.name)
        return f"{Model.open(phase.output.path).rows} classes"

    def iterations(self, at: Step, want: Any) -> int:
        return _schedule(at.run, at.chain, self.lessons(want.how), self.images(at, want)).iterations

    def effort(self, at: Step, want: Any) -> Effort:
        run, size = at.run, at.run.config.data.image_size
        assert size is not None, "plans know the size of images"
        training = _schedule(run, at.chain, self.lessons(want.how), self.images(at, want))
        network, world = run.embedder(at.chain, at.number), max(1, run.config.cluster.workers)
        new, old, _ = _classes(at, want.how)
        head = head_footprint(
            *(RECIPE, 0, new + old, network.dimension, network.dimension),
            *(run.classifier(at.chain, at.number), training, False, world),
        )
        turn = [*embedder_footprint(network, size, training, world).operations, *head.operations]
        return Effort(at.number, turns=training.iterations, turn=tuple(turn))

    @abstractmethod
    def images(self, at: Step, want: Any) -> int:
        """How many it has, if every class has as many as any other."""


def _classes(at: Step, how: ExpertSettings) -> tuple[int, int, int]:
    """How many classes an expert learns that are new, how many old, and the exemplars of each."""
    old, last = at.run.benchmark.rows_before(at.number), at.run.benchmark.row_ends[at.number]
    memory = at.recipe.memory
    each = memory.share(old) - at.recipe.held_each(old) if memory is not None else 0
    return last - old, classes(how.similar, old, last - old) - (last - old), each


def _new_images(at: Step) -> int:
    benchmark, old = at.run.benchmark, at.run.benchmark.rows_before(at.number)
    held = at.recipe.held_each(old) * (benchmark.row_ends[at.number] - old)
    return len(benchmark.steps[at.number]) - held


class TrainExpertOnAll(_Training):
    """On all images of its classes (Sec. 3.2)."""

    name = "expert-on-all"

    def wants(self, at: Step) -> tuple[First, ...]:
        want = at.recipe.want(Expert)
        return (First(want.how),) if at.number and want else ()

    def inputs(self, at: Step, want: First) -> tuple[Phase, ...]:
        begins = (at.at(at.number - 1).model,) if want.how.start == "previous" else ()
        return (*super().inputs(at, want), *begins)

    def lessons(self, how: ExpertSettings) -> Lessons:
        return how.on_all

    def images(self, at: Step, want: First) -> int:
        _, old, each = _classes(at, want.how)
        return _new_images(at) + old * each


class TrainExpert(_Training):
    """On as many of each, drawn by seed and image."""

    name = "expert"

    def wants(self, at: Step) -> tuple[Expert, ...]:
        want = at.recipe.want(Expert)
        return (want,) if at.number and want else ()

    def inputs(self, at: Step, want: Expert) -> tuple[Phase, ...]:
        first = next(p for p in at.phases if isinstance(p.kind, TrainExpertOnAll))
        return (first, *super().inputs(at, want))

    def lessons(self, how: ExpertSettings) -> Lessons:
        return how.balanced

    def images(self, at: Step, want: Expert) -> int:
        new, old, each = _classes(at, want.how)
        balanced = min(_new_images(at), new * each) if old else _new_images(at)
        return balanced + old * each


def _schedule(run: Run, chain: Chain, how: Lessons, images: int) -> TrainingSettings:
    return schedule(how.lessons(run.lessons(chain)), images, False, (), 0)


def train_expert(context: RankContext, job: ExpertJob) -> None:
    """What each rank does. Raises InputError."""
    train_on_rank(context, spec_of(context.run, job))


def spec_of(run: Run, job: ExpertJob) -> TrainingSpec:
    """What the ranks train. Raises InputError."""
    spec = run.training_spec(job.chain, job.step, job.phase)
    rows = read_arrays(job.rows, needs=("rows",))["rows"]
    samples = spec.recipe.samples(spec.benchmark, job.step)
    benchmark = spec.benchmark.of_rows(rows, spec.dataset.identity, samples, job.step)
    lessons: Lessons = job.how.on_all
    if job.begins is not None:
        lessons, own = job.how.balanced, benchmark.steps[job.step]
        chosen = balanced(
            benchmark.row_of_identity[spec.dataset.identity[own]],
            spec.dataset.key_hashes[own],
            int(stream_key(job.chain.seed, "balanced", job.step) >> np.uint64(1)),
        )
        benchmark = replace(
            benchmark,
            steps=tuple(
                own[chosen] if number == job.step else step
                for number, step in enumerate(benchmark.steps)
            ),
        )
    embedder = spec.embedder
    if job.how.start == "scratch":  # the host may train no weights of convolutions, it trains all
        embedder = embedder.model_copy(update={"convolutions": "trained"})
    return replace(
        spec,
        embedder=embedder,
        benchmark=benchmark,
        training=_schedule(run, job.chain, lessons, len(benchmark.steps[job.step])),
        recipe=replace(RECIPE, start=Start(embedder=job.how.start)),
        previous=None,
        anchor=None,
        extractor=spec.previous,
        begins=None if job.begins is None else Model.open(job.begins),
        origin=job.origin,
    )


class ExpertSays(Kind[ExpertAnswers]):
    """The expert's embeddings of the step's images, ahead of training, a shard in a view a unit."""

    name = "expert-answers"
    where = "actors"
    only_prepares = True

    def wants(self, at: Step) -> tuple[ExpertAnswers, ...]:
        want = at.recipe.want(Expert)
        asked = at.number and want and at.run.config.teacher.mode == "cached"
        return (ExpertAnswers(want.how.keep),) if asked and want else ()

    def inputs(self, at: Step, want: ExpertAnswers) -> tuple[Phase, ...]:
        expert = next(p for p in at.phases if isinstance(p.kind, TrainExpert))
        return (expert, *(exemplars_before(at) if at.recipe.memory is not None else ()))

    def decides(self, at: Step, want: ExpertAnswers) -> Any:
        return [at.recipe.spelled_images(), at.number, at.run.config.deciding()["teacher"]]

    def output(self, at: Step, want: ExpertAnswers) -> Output:
        return Output(at.folder / EXPERT_ANSWERS_FOLDER)

    def temporary(self, want: ExpertAnswers) -> bool:
        return not want.keep

    def effort(self, at: Step, want: ExpertAnswers) -> Effort:
        return Effort(at.number, images_asked(at) * len(views_of(at)))

    def work(self, phase: Phase, executor: Executor) -> str:
        expert, output = Model.open(phase.inputs[0].output.path), phase.output.path
        part = ask(phase, executor, expert, Answers(embeddings=True))
        phase.at.run.fence.check()
        shutil.rmtree(output, ignore_errors=True)  # of other settings
        part.rename(output)
        return ""
