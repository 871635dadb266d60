"""Who does the work of a run's phases, whichever way processes are started."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from launch.config.cluster import ClusterSettings
from launch.execution.rank import RankJob, S
from launch.inference.worker import T, Unit
from launch.runs.run import Run
from monitoring.progress import RunProgress


class Executor(Protocol):
    """Does what the driver cannot do alone."""

    def map(self, unit: Unit[T], calls: list[tuple[Any, ...]]) -> list[T]:
        """Does a unit of work with each of `calls` on some `ShardWorker`; results in their order.

        Raises InputError as the unit did, Preempted when asked to stop. After Diverged there may
        be more to do, here and in `on_ranks`.
        """

    def on_ranks(self, phase: str, job: RankJob[S], spec: S) -> None:
        """Does `job` on every training rank, until all have ended or, after a stop, have saved.

        Ranks that are lost are started again and do the job from its beginning: it goes on from
        its own checkpoints. `phase` names it in records. Raises InputError.
        """


OpenExecutor = Callable[[Run, RunProgress, threading.Event], Executor]
"""Makes the executor of a run; the event is set to end its work early, with nothing lost."""
Executors = Callable[[ClusterSettings], AbstractContextManager[OpenExecutor]]
"""Opens what executors of one kind need, such as a Ray cluster."""
