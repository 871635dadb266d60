"""An executor on a Ray cluster: CPU actors for units of work, Ray Train for the jobs of ranks.

Ranks and actors both stay, where the cluster has room for both; else whoever comes next has the
other end.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from launch.config.cluster import ClusterSettings
from launch.execution.actor_pool import ActorPool
from launch.execution.executor import OpenExecutor
from launch.execution.in_process import InProcess
from launch.execution.rank import RankJob, S
from launch.execution.ray_cluster import cluster
from launch.execution.ray_ranks import RayRanks
from launch.exits import Preempted
from launch.inference.worker import T, Unit
from launch.runs.run import Run
from monitoring.progress import RunProgress
from monitoring.run_folder import TARGETS_FOLDER


class RayExecutor:
    """See `Executor`."""

    def __init__(self, ray: Any, run: Run, progress: RunProgress, stop: threading.Event) -> None:
        self._run, self._ray, self._progress, self._stop = run, ray, progress, stop
        config = run.config
        self._pool = ActorPool(
            ray,
            config.cluster,
            dataset=config.dataset_location(),
            cache=config.data.cache,
            targets=run.folder / TARGETS_FOLDER,
            stop=stop,
            units=progress.units,
            fence=run.fence,
            tell=progress.notice,
        )
        self._ranks: RayRanks | None = None
        self._alone = InProcess(run, progress, stop)

    def map(self, unit: Unit[T], calls: list[tuple[Any, ...]]) -> list[T]:
        if self._ranks is not None and self._ranks.there and not self._pool.has_room():
            self._ranks.end()
        compiled = self._run.config.teacher.compile
        once = "; each compiles the model once, about half a minute" if compiled else ""
        self._progress.doing(f"waiting for CPU actors{once}")
        return self._pool.map(unit, calls)

    def on_ranks(self, phase: str, job: RankJob[S], spec: S) -> None:
        workers = self._run.config.cluster.workers
        if self._ranks is None or not self._ranks.there:
            self._pool.make_room(workers + 1)
        if self._ranks is None and workers:
            self._ranks = RayRanks(self._run, self._ray, self._progress, self._stop)
        (self._ranks or self._alone).on_ranks(phase, job, spec)

    def close(self) -> None:
        """Lets ranks go that wait for a job. Ray must not be shut down while they are awaited."""
        if self._ranks is not None:
            self._ranks.end()

    def forsake(self) -> None:
        """Leaves ranks alone that may be at work, before Ray is shut down."""
        if self._ranks is not None:
            self._ranks.forsake()


@contextmanager
def on_ray(settings: ClusterSettings) -> Iterator[OpenExecutor]:
    """Starts or joins Ray for as long as executors work."""
    with cluster(settings) as ray, ExitStack() as opened:

        def make(run: Run, progress: RunProgress, stop: threading.Event) -> RayExecutor:
            executor = RayExecutor(ray, run, progress, stop)

            def close(kind: type[BaseException] | None, *_: object) -> None:
                # after an error ranks may be at work, and end with Ray and this process
                if kind is None or issubclass(kind, Preempted):
                    executor.close()
                else:
                    executor.forsake()

            opened.push(close)
            return executor

        yield make
