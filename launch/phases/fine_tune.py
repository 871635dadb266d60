"""Fine-tuning on the memory alone: the step's model, once more, on as many images of each class."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.execution.executor import Executor
from launch.execution.rank import RankContext
from launch.exits import Preempted
from launch.phases.kind import Kind, Output, Phase, Step
from launch.phases.train import train_on_rank
from launch.runs.run import Chain, Run
from monitoring.run_folder import MODEL_FOLDER
from trainer.methods.fine_tuning import FineTuning
from trainer.model import Model
from trainer.optimizers import TrainingSettings, schedule
from trainer.training_spec import TrainingSpec


@dataclass(frozen=True)
class FineTuningJob:
    """Which learning step's model the ranks train on."""

    chain: Chain
    step: int
    how: FineTuning
    trained: Path
    """The model of the step's main training."""
    origin: str
    """The phase's fingerprint."""
    prepared: Mapping[type, Path]
    """See `launch.phases.train.TrainingJob`."""


class FineTune(Kind[FineTuning]):
    """Balanced fine-tuning, with the step's own losses; the previous model is asked along with
    training, since what was cached is of other images."""

    name = "fine-tune"
    where = "ranks"
    makes_model = True

    def wants(self, at: Step) -> tuple[FineTuning, ...]:
        how = at.recipe.fine_tune
        return () if how is None else (how,)

    def inputs(self, at: Step, want: FineTuning) -> tuple[Phase, ...]:
        trained = at.model_before(FineTune)
        assert at.memory is not None, "a recipe without one is refused"
        given = (phase for phase in trained.inputs if not phase.kind.makes_memory)
        return (trained, at.memory, *given)

    def decides(self, at: Step, want: FineTuning) -> Any:
        # what else decides it has decided the training before
        return want.model_dump(mode="json")

    def output(self, at: Step, want: FineTuning) -> Output:
        return Output(at.folder / MODEL_FOLDER)

    def work(self, phase: Phase, executor: Executor) -> str:
        trained, *given = phase.inputs
        job = FineTuningJob(
            chain=phase.at.chain,
            step=phase.at.number,
            how=phase.want,
            trained=trained.output.path.resolve(),
            origin=phase.fingerprint,
            prepared={
                type(p.want): p.output.path.resolve()
                for p in given
                if p.kind.only_prepares or p.kind.prepares_next
            },
        )
        executor.on_ranks(phase.name, fine_tune, job)
        if not phase.output.complete:
            raise Preempted(phase.name)
        return ""

    def iterations(self, at: Step, want: FineTuning) -> int:
        memory, benchmark = at.run.memory(at.chain), at.run.benchmark
        assert memory is not None, "a recipe without one is refused"
        images = [len(own) for own in benchmark.steps]
        count = memory.count(images, benchmark.row_ends, at.number + 1)
        return _schedule(at.run, at.chain, want, count).iterations


def _schedule(run: Run, chain: Chain, how: FineTuning, images: int) -> TrainingSettings:
    return schedule(how.lessons(run.lessons(chain)), images, False, (), 0)


def fine_tune(context: RankContext, job: FineTuningJob) -> None:
    """What each rank does. Raises InputError."""
    train_on_rank(context, spec_of(context.run, job))


def spec_of(run: Run, job: FineTuningJob) -> TrainingSpec:
    """What the ranks train. Raises InputError."""
    spec = run.training_spec(job.chain, job.step, FineTune.name)
    dataset, benchmark = run.memory_data(job.chain, job.step)
    return replace(
        spec,
        dataset=dataset,
        benchmark=benchmark,
        training=_schedule(run, job.chain, job.how, len(dataset)),
        teacher=spec.teacher.model_copy(update={"mode": "online"}),
        recipe=spec.recipe.fine_tuned(),
        begins=Model.open(job.trained),
        folder=run.step_folder(job.chain, job.step),
        prepared=job.prepared,
        origin=job.origin,
    )
