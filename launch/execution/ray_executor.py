"""Who does the work of a run's phases: on Ray, trainers and CPU actors."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from launch.config.cluster import ClusterSettings
from launch.execution.actor_pool import ActorPool
from launch.execution.executor import Hire
from launch.execution.ray_cluster import cluster
from launch.execution.ray_training import TrainingPhases
from launch.runs.run import Chain, Run
from monitoring.progress import RunProgress


class RayCrew:
    """A crew on a Ray cluster."""

    def __init__(self, ray: Any, run: Run, progress: RunProgress, stop: threading.Event) -> None:
        self._run, self._ray, self._progress, self._stop = run, ray, progress, stop
        config = run.config
        where = config.dataset_location(), config.data.cache, run.folder / "targets"
        self._pool = ActorPool(
            ray, config.cluster, *where, stop, progress.units, run.fence, progress.notice
        )
        self._training: TrainingPhases | None = None

    def map(self, method: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        return self._pool.map(method, calls)

    def train(self, name: str, chain: Chain, step: int) -> None:
        self._pool.make_room(self._run.config.cluster.workers + 1)
        if self._training is None:
            self._training = TrainingPhases(self._run, self._ray, self._progress, self._stop)
        self._training.train(name, chain, step)


@contextmanager
def on_ray(settings: ClusterSettings) -> Iterator[Hire]:
    """Starts or joins Ray for as long as the crew works."""
    with cluster(settings) as ray:
        yield partial(RayCrew, ray)
