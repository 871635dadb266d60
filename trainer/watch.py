"""Watching a training phase: times, losses, records."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from data_shards.pipeline import Batch
from monitoring.metrics import Metrics
from trainer.optimizers import learning_rate
from trainer.task import Task


class Watch:
    """Times the loop, keeps its metrics, and reports now and then."""

    def __init__(
        self,
        task: Task,
        metrics: Metrics,
        report: Callable[[dict[str, Any]], None],
        start: int,
    ) -> None:
        self._task, self._metrics, self._report = task, metrics, report
        self._since, self._last, self._wait = time.monotonic(), start, 0.0

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time waited for each counted."""
        while True:
            begun = time.monotonic()
            batch = next(batches, None)
            waited = time.monotonic() - begun
            self._wait += waited
            self._metrics.data_wait.inc(waited)
            if batch is None:
                return
            yield batch

    def iteration(self, done: int, losses: dict[str, torch.Tensor]) -> None:
        """Counts an iteration; every ``log_every`` of them, looks at the losses and reports."""
        training = self._task.training
        self._metrics.iterations.inc()
        self._metrics.images.inc(training.batch)
        if done % training.log_every and done != training.iterations:
            return
        values = {name: float(value) for name, value in losses.items()}
        if not all(map(torch.isfinite, losses.values())):
            raise FloatingPointError(
                f"the loss is not finite at iteration {done}: {values}; lower "
                "training.learning_rate or the method's weight"
            )
        now = time.monotonic()
        elapsed, count = now - self._since, done - self._last
        record = {
            "iteration": done,
            "of": training.iterations,
            "learning_rate": learning_rate(training, done - 1),
            "images_per_second": training.batch * count / elapsed,
            "data_wait_share": self._wait / elapsed,
            **values,
        }
        self._since, self._last, self._wait = now, done, 0.0
        self._metrics.loss.set(values["loss"])
        self._metrics.iteration_seconds.observe(elapsed / count)
        self._report(record)
