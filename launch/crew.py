"""Who does the work of a run's phases: on Ray, trainers and CPU actors."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

from launch.cluster import cluster
from launch.cluster_settings import ClusterSettings
from launch.folder import Chain, Run
from launch.pool import ActorPool
from launch.training import TrainingPhases
from monitoring.progress import RunProgress


class Crew(Protocol):
    """Does what the driver cannot do alone."""

    def map(self, method: str, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Calls a method of `ShardWorker` with each of `calls`, somewhere; results in their order.

        Raises InputError as the method did, Preempted when asked to stop.
        """

    def train(self, name: str, chain: Chain, step: int) -> None:
        """Trains a learning step until it is finished, or a checkpoint is saved after a stop.

        Raises InputError.
        """


Hire = Callable[[Run, RunProgress, threading.Event], Crew]
"""Makes the crew of a run; the event is set to end its work early, with nothing lost."""
Employ = Callable[[ClusterSettings], AbstractContextManager[Hire]]
"""Opens what a crew needs."""


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
