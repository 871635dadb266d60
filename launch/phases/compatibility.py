"""The compatibility of a learning step's model with every one before it, from stored embeddings."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.files import write_json
from launch.execution.executor import Executor
from launch.inference.worker import without_worker
from launch.phases.evaluate import Evaluate
from launch.phases.kind import Kind, Output, Phase, Step
from launch.runs.run import Chain, Run
from monitoring.records import comparison
from monitoring.run_folder import COMPARISONS_FILE, EMBEDDINGS_FILE
from trainer.arrays import read_embeddings
from trainer.evaluation.compatibility import CompatibilitySettings
from trainer.evaluation.compatibility.comparison import compare
from trainer.evaluation.compatibility.trials import Trials, of_benchmark
from trainer.evaluation.compatibility.vectors import Embedded
from trainer.model import Model


class Compatibility(Kind[None]):
    """Compares a step's model with those of all steps before, where the run asks for it."""

    name = "compatibility"
    where = "actors"

    def wants(self, at: Step) -> tuple[None, ...]:
        return (None,) if at.number and at.run.config.evaluation.compatibility else ()

    def inputs(self, at: Step, want: None) -> tuple[Phase, ...]:
        paragon = self._paragon(at)
        of = [at.at(number) for number in range(at.number + 1)] + ([paragon] if paragon else [])
        return tuple(p for step in of for p in step.phases if isinstance(p.kind, Evaluate))

    def decides(self, at: Step, want: None) -> Any:
        how = settings_of(at.run).model_dump(exclude={"gate", "paragon"})
        return [how, at.run.config.evaluation.distance]

    def identity(self, at: Step, want: None) -> Any:
        paragon = self._paragon(at)
        best = paragon and paragon.model.fingerprint
        return [self.name, at.model.fingerprint, best, *self.decides(at, want)]

    def output(self, at: Step, want: None) -> Output:
        return Output(at.folder / COMPARISONS_FILE)

    def work(self, phase: Phase, executor: Executor) -> str:
        """A comparison is a unit of work; the first's and the last's have backfill curves."""
        at, run = phase.at, phase.at.run
        settings, trials = settings_of(run), trials_of(run)
        paragon = self._paragon(at)
        best, new = paragon and _stored(paragon), _stored(at)
        calls = [
            (
                *(compare_stored, trials, _stored(at.at(earlier)), new, best, settings),
                *(run.dataset.names, earlier in (0, at.number - 1)),
            )
            for earlier in range(at.number)
        ]
        found = executor.map(without_worker, calls)
        against = [{"step": earlier, **one} for earlier, one in enumerate(found)]
        held = against[-1]["holds"]
        run.fence.check()
        result = {"holds": held, "paragon": settings.paragon, "against": against}
        write_json(phase.output.path, result)
        first, *_ = against[-1]["points"]
        gained = f"{first['point']} {100 * first['gain']['value']:+.1f}"
        on = f"on step {at.number - 1}'s gallery"
        return f"{gained} {on}, {'compatible' if held else 'not compatible'}"

    def verdict(self, phase: Phase) -> str | None:
        found = comparison(phase.output.path)
        if found["holds"]:
            return ""
        failed = [p["point"] for p in found["against"][-1]["points"] if not p["holds"]]
        return (
            f"{phase.at.name} is not published: not compatible with "
            f"step-{phase.at.number - 1} at {', '.join(failed)}"
        )

    @staticmethod
    def _paragon(at: Step) -> Step | None:
        """The same step of the method that the best reachable model is trained by."""
        method = settings_of(at.run).paragon
        return at.at(at.number, Chain(method, at.chain.seed)) if method else None


def settings_of(run: Run) -> CompatibilitySettings:
    """How the run compares models; it must do so."""
    settings = run.config.evaluation.compatibility
    assert settings is not None
    return settings


def trials_of(run: Run) -> Trials:
    """The run's compatibility test.

    Raises InputError when it cannot tell an operating point that is asked for.
    """
    distance = run.config.evaluation.distance
    trials = of_benchmark(run.dataset, run.benchmark, distance, "the benchmark")
    trials.points(settings_of(run).at)
    return trials


def _stored(at: Step) -> tuple[Path, str]:
    """A step's embeddings, and the fingerprint of the model that they must be of."""
    model = Model.open(at.model.output.path)
    return (at.folder / EMBEDDINGS_FILE).resolve(), model.fingerprint


def compare_stored(
    trials: Trials,
    old: tuple[Path, str],
    new: tuple[Path, str],
    paragon: tuple[Path, str] | None,
    settings: CompatibilitySettings,
    names: NDArray[np.object_],
    backfill: bool,
) -> dict[str, Any]:
    """`compare` of embeddings in files, each with the fingerprint of its model."""
    before, after = (Embedded(*read_embeddings(*stored)) for stored in (old, new))
    best = Embedded(*read_embeddings(*paragon)) if paragon else None
    return compare(trials, before, after, best, settings, names, backfill)
