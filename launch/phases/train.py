"""Training: one learning step of one method, on all ranks."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.execution.executor import Executor
from launch.execution.rank import RankContext
from launch.exits import Preempted
from launch.phases.exemplars import exemplars_before
from launch.phases.kind import Kind, Output, Phase, Step
from launch.runs.run import Chain
from monitoring.run_folder import MODEL_FOLDER
from trainer.loop import train
from trainer.training_spec import TrainingSpec


@dataclass(frozen=True)
class TrainingJob:
    """Which learning step the ranks train."""

    chain: Chain
    step: int
    origin: str
    """The phase's fingerprint."""
    prepared: Mapping[type, Path] = field(default_factory=dict)
    """The outputs of the phases that its Terms' wants led to, by the want's class."""


class Train(Kind[None]):
    """The main training of a step."""

    name = "train"
    where = "ranks"
    makes_model = True

    def wants(self, at: Step) -> tuple[None, ...]:
        return () if at.number == 0 and at.run.given else (None,)

    def inputs(self, at: Step, want: None) -> tuple[Phase, ...]:
        prepared = [phase for phase in at.phases if phase.kind.only_prepares]
        if at.recipe.memory is not None:
            prepared += exemplars_before(at)
        if not at.number:
            return tuple(prepared)
        prepared += [p for p in at.at(at.number - 1).phases if p.kind.prepares_next]
        models = dict.fromkeys((at.number - 1, at.run.anchor_step(at.chain, at.number)))
        return (*prepared, *(at.at(number).model for number in models))

    def decides(self, at: Step, want: None) -> Any:
        run, chain, step = at.run, at.chain, at.number
        deciding, recipe = run.config.deciding(), at.recipe
        common = [deciding["benchmark"], deciding["data"], run.lessons(chain).deciding()]
        model = [run.embedder(chain, step).deciding(), run.classifier(chain, step).deciding()]
        teacher = deciding["teacher"] if recipe.wants else None
        start = run.start(chain, step)
        begins = [] if start is None else [start.deciding()]
        return [common, model, recipe.fingerprint(), teacher, chain.seed, step, *begins]

    def identity(self, at: Step, want: None) -> Any:
        # fingerprints of before phases had kinds: the past is the model before, or the dataset
        past = at.at(at.number - 1).model if at.number else at.run.dataset
        prepared = [
            given.fingerprint
            for given in self.inputs(at, want)
            if not given.kind.makes_model and not given.kind.implied
        ]
        return [*self.decides(at, want), past.fingerprint, *prepared]

    def output(self, at: Step, want: None) -> Output:
        return Output(at.run.training_folder(at.chain, at.number) / MODEL_FOLDER)

    def work(self, phase: Phase, executor: Executor) -> str:
        prepared = {
            type(given.want): given.output.path.resolve()
            for given in phase.inputs
            if given.kind.only_prepares or given.kind.prepares_next
        }
        job = TrainingJob(phase.at.chain, phase.at.number, phase.fingerprint, prepared)
        executor.on_ranks(phase.name, train_step, job)
        if not phase.output.complete:
            raise Preempted(phase.name)
        return ""

    def iterations(self, at: Step, want: None) -> int:
        return at.run.training(at.chain, at.number).iterations


def train_step(context: RankContext, job: TrainingJob) -> None:
    """What each rank does. Raises InputError."""
    spec = context.run.training_spec(job.chain, job.step)
    train_on_rank(context, replace(spec, origin=job.origin, prepared=job.prepared))


def train_on_rank(context: RankContext, spec: TrainingSpec) -> None:
    """Trains `spec` on this rank, together with the others. Raises InputError."""
    context.metrics.step.set(spec.step)
    train(
        spec,
        context.ranks,
        context.device,
        context.metrics,
        report=context.report,
        tell=context.tell,
        activity=context.activity,
    )
