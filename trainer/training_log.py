"""Watching a training phase: times, losses, records, events."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.pipeline import Batch
from data_shards.quarantine import Quarantine
from monitoring.metrics import Metrics
from trainer.activity import Activity
from trainer.guard import Fault
from trainer.optimizers import learning_rate
from trainer.rewinds import EXPLAINED
from trainer.state import State
from trainer.training_spec import TrainingSpec


class TrainingLog:
    """Times the loop, keeps its metrics, and reports now and then."""

    def __init__(
        self,
        spec: TrainingSpec,
        metrics: Metrics,
        report: Callable[[dict[str, Any]], None],
        activity: Activity,
        rewinds: int,
    ) -> None:
        """`rewinds`: of the phase so far."""
        self._spec, self._metrics, self._report, self._activity = spec, metrics, report, activity
        self._rewinds, self._skipped = rewinds, 0
        metrics.rewinds.inc(rewinds)
        self._losses: dict[str, torch.Tensor] = {}
        self.begin(0)

    def begin(self, iteration: int) -> None:
        """Training starts, or starts again, at `iteration`."""
        self._since, self._last, self._wait = time.monotonic(), iteration, 0.0

    def quarantine(self, suspects: NDArray[np.int64]) -> Quarantine:
        """The list of the phase's damaged samples, leaving out `suspects` too."""
        path, budget = self._spec.folder / "quarantine.jsonl", self._spec.data.max_quarantined
        self._metrics.quarantine_budget.set(budget)
        return Quarantine(path, budget, self._metrics.quarantined.inc, suspects)

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with the time waited for each counted."""
        while True:
            self._activity.turn("reading input")
            begun = time.monotonic()
            batch = next(batches, None)
            waited = time.monotonic() - begun
            self._wait += waited
            self._metrics.data_wait.inc(waited)
            if batch is None:
                return
            yield batch

    def iteration(self, state: State, losses: dict[str, torch.Tensor], fault: Fault | None) -> None:
        """Counts an iteration; every ``log_every`` of them, reports the last update's losses."""
        training, done = self._spec.training, state.iteration
        self._metrics.iteration.set(done)
        self._metrics.images.inc(training.batch)
        if fault is None:
            self._metrics.iterations.inc()
            self._losses = losses
        else:
            self._skipped += 1
            self._metrics.skipped.labels(fault).inc()
        if fault not in (None, "overflow"):
            self._tell("skip", done, fault)
        if not self._losses or (done % training.log_every and done != training.iterations):
            return
        values = {name: float(value) for name, value in self._losses.items()}
        now = time.monotonic()
        elapsed, count = now - self._since, done - self._last
        record = {
            "iteration": done,
            "of": training.iterations,
            "iterations": count,
            "seconds": elapsed,
            "learning_rate": learning_rate(training, done - 1),
            "images_per_second": training.batch * count / elapsed,
            "data_wait_share": self._wait / elapsed,
            "skipped": self._skipped,
            "rewinds": self._rewinds,
            **values,
        }
        self._since, self._last, self._wait = now, done, 0.0
        self._metrics.loss.set(values["loss"])
        self._metrics.learning_rate.set(record["learning_rate"])
        for name, value in values.items():
            if name != "loss":
                self._metrics.term.labels(name).set(value)
        self._metrics.iteration_seconds.observe(elapsed / count)
        if (scale := state.gradients.scale) is not None:
            record["loss_scale"] = scale.value
            self._metrics.loss_scale.set(scale.value)
        self._report(record)

    def rewound(self, iteration: int, why: Fault) -> None:
        """Training goes back to a checkpoint."""
        self._rewinds += 1
        self._metrics.rewinds.inc()
        self._tell("rewind", iteration, why)

    def _tell(self, event: str, iteration: int, why: Fault) -> None:
        message = f"{event} at iteration {iteration}: {EXPLAINED[why]}"
        self._report({"event": event, "iteration": iteration, "why": why, "message": message})
