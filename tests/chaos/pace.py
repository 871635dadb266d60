"""Training whose steps take their time but not a core's, as those of a GPU do.

For runs that train until they are ended: what is waited for costs others nothing.
"""

import time
from collections.abc import Callable
from typing import Any

from launch.execution import ray_ranks, ray_worker
from trainer.stepper import Stepper

SECONDS = 0.03
"""Of each step, beside what it computes."""


def slow_steps() -> None:
    """Makes the steps of this process take `SECONDS` more."""
    step: Callable[..., Any] = Stepper.__call__

    def stepped(self: Stepper, batch: Any) -> Any:
        losses = step(self, batch)
        time.sleep(SECONDS)
        return losses

    Stepper.__call__ = stepped  # type: ignore[method-assign]


def worker(given: Any) -> None:
    """The function of that name of `launch.execution.ray_worker`, with slow steps."""
    slow_steps()
    ray_worker.worker(given)


def slow_ranks() -> None:
    """Makes the steps of all ranks that this driver starts slow, and its own."""
    slow_steps()
    ray_ranks.worker = worker
