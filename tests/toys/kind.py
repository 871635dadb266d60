"""The toy paper's phase: trains the expert, a second training of its step, on all ranks."""

from dataclasses import dataclass, replace
from typing import Any

from trainer.methods.toy_want import ToyExpert

from launch.execution.executor import Executor
from launch.execution.rank import RankContext
from launch.exits import Preempted
from launch.phases.kind import Kind, Output, Phase, Step
from launch.phases.train import train_on_rank
from launch.runs.run import Chain
from trainer.methods.recipe import FROM_SCRATCH, Recipe
from trainer.methods.spelling import spelled
from trainer.methods.terms import Classify


@dataclass(frozen=True)
class ExpertJob:
    """Which expert the ranks train."""

    chain: Chain
    step: int
    iterations: int


class TrainToyExpert(Kind[ToyExpert]):
    """From scratch, on the step's new identities."""

    name = "toy-expert"
    where = "ranks"
    only_prepares = True

    def wants(self, at: Step) -> tuple[ToyExpert, ...]:
        want = at.recipe.want(ToyExpert)
        return (want,) if at.number and want else ()

    def inputs(self, at: Step, want: ToyExpert) -> tuple[Phase, ...]:
        return (at.at(at.number - 1).model,)

    def decides(self, at: Step, want: ToyExpert) -> Any:
        return [spelled(want), at.run.config.deciding()["training"], at.chain.seed, at.number]

    def output(self, at: Step, want: ToyExpert) -> Output:
        return Output(at.run.training_folder(at.chain, at.number, self.name) / "model")

    def work(self, phase: Phase, executor: Executor) -> str:
        job = ExpertJob(phase.at.chain, phase.at.number, phase.want.iterations)
        executor.on_ranks(phase.name, train_expert, job)
        if not phase.output.complete:
            raise Preempted(phase.name)
        return "an expert"

    def iterations(self, at: Step, want: ToyExpert) -> int:
        return want.iterations


def train_expert(context: RankContext, job: ExpertJob) -> None:
    """What each rank does."""
    spec = context.run.training_spec(job.chain, job.step, TrainToyExpert.name)
    training = spec.training.model_copy(update={"iterations": job.iterations, "milestones": ()})
    recipe = Recipe(start=FROM_SCRATCH, terms=(Classify(),))
    train_on_rank(context, replace(spec, training=training, recipe=recipe))
