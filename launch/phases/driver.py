"""Walking through the phases of a run: each is done once, however often it stops."""

import threading
import time
from collections.abc import Callable

from launch.execution.executor import Crew
from launch.exits import Preempted
from launch.phases.adopt import take_adopted
from launch.phases.compatibility import compare_step
from launch.phases.cpu import CpuPhases
from launch.phases.planning import Phase
from launch.phases.publishing import gated, update_published, verdict
from launch.runs.ledger import Ledger
from launch.runs.links import link
from launch.runs.records import append
from launch.runs.run import Run
from monitoring.progress import RunProgress


class Driver:
    """Walks a run's phases with a crew and records them in the ledger."""

    def __init__(
        self, run: Run, ledger: Ledger, crew: Crew, progress: RunProgress, stop: threading.Event
    ) -> None:
        """`stop` is set to end the walk early, with nothing lost."""
        self._run, self._ledger, self._crew, self._progress = run, ledger, crew, progress
        self._cpu = CpuPhases(run, crew)
        self._stop = stop

    def walk(self, todo: list[Phase]) -> None:
        """Does `todo` in order.

        Raises InputError with the workers' own words, Preempted when `stop` was set.
        """
        works: dict[str, Callable[[Phase], str]] = {
            "neighbours": self._cpu.neighbours,
            "prototypes": self._cpu.prototypes,
            "adopt": self._adopt,
            "train": self._train,
            "evaluate": self._cpu.evaluate,
            "compatibility": self._compatibility,
        }
        for phase in todo:
            if self._stop.is_set():
                raise Preempted(phase.name)
            self._run.fence.check()
            self._progress.begin(phase.name)
            started = time.time()
            twin = self._ledger.twin(phase.fingerprint)
            source = self._run.folder / twin["output"] if twin else None
            if twin and source and source.exists() and source != phase.output:
                for name in (*phase.beside, phase.output.name):
                    if (file := source.with_name(name)).exists():
                        link(file, phase.output.with_name(name))
                result = f"the same as {twin['phase']}"
            else:
                twin = None
                result = works[phase.kind](phase)
            self._run.fence.check()
            self._ledger.add(
                {
                    "phase": phase.name,
                    "fingerprint": phase.fingerprint,
                    "output": str(phase.output.relative_to(self._run.folder)),
                    "kind": phase.kind,
                    "method": phase.chain.method,
                    "seed": phase.chain.seed,
                    "step": phase.step,
                    "started": started,
                    "finished": time.time(),
                    **self._run.config.cluster.allocated(phase.kind),
                    "attempt": self._run.fence.attempt,
                    **({"same_as": twin["phase"]} if twin else {}),
                }
            )
            self._progress.end(result)
            self._publish(phase)

    def _compatibility(self, phase: Phase) -> str:
        return compare_step(self._run, phase, self._crew.map)

    def _publish(self, phase: Phase) -> None:
        """Publishes what may be, where the run has a gate; says so where `phase` may not."""
        if phase.kind not in ("evaluate", "compatibility") or not gated(self._run):
            return
        withheld = update_published(self._run, self._ledger)
        if phase.kind == "compatibility" and (why := verdict(phase)) in withheld:
            self._progress.notice(why)
            append(self._run.folder, "events.jsonl", {"event": "withheld", "message": why})

    def _adopt(self, phase: Phase) -> str:
        model = self._run.given[phase.chain]
        if self._run.adopted is not None:
            take_adopted(self._run, phase.output)
        else:
            link(model.folder, phase.output)
        return f"{model.rows:,} rows"

    def _train(self, phase: Phase) -> str:
        self._crew.train(phase.name, phase.chain, phase.step)
        if not phase.output.exists():
            raise Preempted(phase.name)
        return ""
