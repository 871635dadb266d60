"""A pool of CPU actors: they take each unit of work as soon as one of them is free."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_shards.settings import InputError
from data_shards.storage.remote import CacheSettings
from launch.config.cluster import ClusterSettings
from launch.execution.placement import Waiting
from launch.exits import Preempted
from launch.inference.worker import ShardWorker, T, Unit, images_of
from launch.runs.lease import UNFENCED, Fence
from monitoring.logs import LOG
from trainer.divergence import Diverged

_POLL_SECONDS = 0.2


class ActorPool:
    """`ShardWorker` actors on a Ray cluster, started when they are first needed."""

    def __init__(
        self,
        ray: Any,
        cluster: ClusterSettings,
        *,
        dataset: str,
        cache: CacheSettings,
        targets: Path,
        stop: threading.Event,
        units: Callable[[int, int, tuple[int, int]], None],
        fence: Fence = UNFENCED,
        tell: Callable[[str], None] = LOG.warning,
    ) -> None:
        """`dataset` is a location that every machine knows, `targets` the folder for Prometheus'
        file_sd lists; `stop` ends a map early; `units` hears how many are done, of how many,
        and the same of their images; nothing is written past `fence`; `tell` hears what a cluster
        lacks.
        """
        self._ray, self._cluster, self._dataset, self._cache = ray, cluster, dataset, cache
        self._targets, self._stop, self._units = targets, stop, units
        self._fence, self._tell = fence, tell
        self._actors: list[Any] = []

    def _started(self) -> list[Any]:
        if not self._actors:
            count = self._cluster.actor_count()
            threads = self._cluster.actor_threads()
            actor = self._ray.remote(ShardWorker)
            for number in range(count):
                target = self._targets / f"actor-{number}.json"
                options: dict[str, Any] = {"num_cpus": 1, "max_restarts": -1, "max_task_retries": 3}
                options["resources"] = self._cluster.actor_resources()
                self._actors.append(
                    actor.options(**options).remote(
                        self._dataset,
                        self._cache,
                        threads=threads,
                        target_file=target,
                        name=str(number),
                        fence=self._fence,
                        host=self._cluster.metrics_host,
                    )
                )
        return self._actors

    def has_room(self) -> bool:
        """Whether actors are there, or find room beside what else is.

        On machines of their own nothing else stays: a cluster may then give those machines back.
        """
        if self._actors:
            return True
        free = self._ray.available_resources().get("CPU", 0)
        return not self._cluster.worker_groups and free >= self._cluster.actor_count()

    def make_room(self, slots: int) -> None:
        """Ends the actors where fewer than `slots` CPUs are free beside them.

        Those on machines of their own end in any case: a cluster may then give the machines back.
        """
        if self._actors and (
            self._cluster.worker_groups or self._ray.available_resources().get("CPU", 0) < slots
        ):
            for actor in self._actors:
                self._ray.kill(actor)
            self._actors = []

    def map(self, unit: Unit[T], calls: list[tuple[Any, ...]]) -> list[T]:
        """Does a unit of work with each of `calls`, on whichever actor is free.

        Returns the results in the order of the calls. Raises InputError as a unit did, Preempted
        when asked to stop.
        """
        results: list[Any] = [None] * len(calls)
        images, so_far = [images_of(call) for call in calls], 0
        idle, waiting, done = list(self._started()), list(enumerate(calls)), 0
        running: dict[Any, tuple[int, Any]] = {}
        each = {"CPU": 1.0, **self._cluster.actor_resources()}
        wanted = {name: share * len(idle) for name, share in each.items()}
        waiting_for = Waiting(self._ray, wanted, self._tell)
        while waiting or running:
            if self._stop.is_set():
                raise Preempted("a CPU phase")
            self._fence.check()
            while waiting and idle:
                number, call = waiting.pop(0)
                actor = idle.pop()
                running[actor.run.remote(unit, *call)] = (number, actor)
            ready, _ = self._ray.wait(list(running), timeout=_POLL_SECONDS)
            if not done and not ready:
                waiting_for.check()
            for reference in ready:
                number, actor = running.pop(reference)
                results[number] = self._result(reference)
                idle.append(actor)
                done += 1
                so_far += images[number]
                self._units(done, len(calls), (so_far, sum(images)))
        return results

    def _result(self, reference: Any) -> Any:
        """An actor's answer; an error of its input is raised as itself."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if not isinstance(cause, InputError):
                raise
            raise (Diverged if isinstance(cause, Diverged) else InputError)(str(cause)) from None
