"""Who does the work of a run's phases."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from launch.config.cluster import ClusterSettings
from launch.runs.run import Chain, Run
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
