"""Walking through the phases of a run: each is done once, however often it stops."""

import shutil
import threading
import time
from pathlib import Path

from launch.execution.executor import Executor
from launch.exits import Preempted
from launch.phases.kind import Phase
from launch.phases.publishing import gated, update_published
from launch.runs.code import commit
from launch.runs.ledger import Ledger
from launch.runs.links import link
from launch.runs.records import append
from launch.runs.run import Run
from monitoring.progress import RunProgress
from monitoring.run_folder import EVENTS_FILE
from trainer.divergence import Diverged


class Driver:
    """Walks a run's phases with an executor and records them in the ledger."""

    def __init__(
        self,
        run: Run,
        every: list[Phase],
        ledger: Ledger,
        executor: Executor,
        progress: RunProgress,
        stop: threading.Event,
    ) -> None:
        """`every` phase of the run; `stop` is set to end the walk early, with nothing lost."""
        self._run, self._every, self._ledger = run, every, ledger
        self._executor, self._progress, self._stop = executor, progress, stop

    def walk(self, todo: list[Phase]) -> list[str]:
        """Does `todo` in order, but for phases that diverge and those that need them; returns a
        line for each that diverged.

        Raises InputError with the workers' own words, Preempted when `stop` was set.
        """
        discard(self._every, todo)
        diverged: list[str] = []
        left: set[str] = set()
        for number, phase in enumerate(todo, 1):
            # by fingerprints: a phase of another chain may be the same work
            if not left.isdisjoint([phase.fingerprint, *(p.fingerprint for p in phase.inputs)]):
                left.add(phase.fingerprint)
                continue
            if self._stop.is_set():
                raise Preempted(phase.name)
            self._run.fence.check()
            self._progress.begin(phase.name)
            started = time.time()
            twin = self._linked_twin(phase)
            try:
                result = f"the same as {twin}" if twin else phase.kind.work(phase, self._executor)
            except Diverged as error:
                left.add(phase.fingerprint)
                diverged.append(f"{phase.name}: {error}")
                self._tell("diverged", diverged[-1])
                continue
            self._run.fence.check()
            self._ledger.add(
                {
                    **phase.facts,
                    "started": started,
                    "finished": time.time(),
                    **self._run.config.cluster.allocated(phase.kind.where),
                    "attempt": self._run.fence.attempt,
                    "commit": commit(),
                    **({"same_as": twin} if twin else {}),
                }
            )
            self._progress.end(result)
            if any(read.kind.temporary(read.want) for read in phase.inputs):
                discard(self._every, todo[number:])
            self._publish(phase)
        return diverged

    def _linked_twin(self, phase: Phase) -> str | None:
        """The name of a finished phase with the same result, which is then this one's, too.

        The copy shares its bytes. None where there is no such phase, or its output is gone.
        """
        twin = self._ledger.twin(phase.fingerprint)
        if twin is None:
            return None
        source, output = self._run.folder / twin["output"], phase.output
        if not source.exists() or source == output.path:
            return None
        for target in output.every:
            if (file := source.with_name(target.name)).exists():
                link(file, target)
        return str(twin["phase"])

    def _publish(self, phase: Phase) -> None:
        """Publishes what may be, where the run has a gate; says so where `phase` may not."""
        if not gated(self._run) or (why := phase.kind.verdict(phase)) is None:
            return
        withheld = update_published(self._run, self._every, self._ledger)
        if why in withheld:
            self._tell("withheld", why)

    def _tell(self, event: str, message: str) -> None:
        self._progress.notice(message)
        append(self._run.folder, EVENTS_FILE, {"event": event, "message": message})


def discard(every: list[Phase], todo: list[Phase]) -> None:
    """Deletes the temporary outputs of `every` phase of the run that no phase in `todo` reads, and
    that none of them is a copy of."""
    needed = {phase.fingerprint for phase in todo}
    needed |= {read.fingerprint for phase in todo for read in phase.inputs}
    for phase in every:
        if phase.kind.temporary(phase.want) and phase.fingerprint not in needed:
            for path in phase.output.every:
                remove(path)


def remove(path: Path) -> None:
    """Deletes a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
