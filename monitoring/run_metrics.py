"""The Prometheus metrics of a run as a whole, which its driver serves."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Gauge

from monitoring.exporter import Scrapes, serving
from monitoring.records import evaluations, read_value, step_files
from monitoring.results import HARDER_EACH_STEP, figures
from monitoring.run_folder import COMPARISONS_FILE, TARGETS_FOLDER, target_file
from monitoring.schemas import COMPARISONS

Chain = tuple[str, str]
_LAST_SCRAPE_SECONDS = 60.0


class RunMetrics:
    """What only the driver knows, in a registry of its own: labels bounded by the configuration."""

    def __init__(self, folder: Path, phases: int, done: int) -> None:
        """`phases` of the run in `folder`, of which `done` are finished."""
        self.folder, self.registry = folder, CollectorRegistry()
        gauge = partial(Gauge, registry=self.registry)
        self.started = gauge("perennial_run_start_timestamp_seconds", "When the driver started.")
        self.phases = gauge("perennial_phases", "Phases of the whole run.")
        self.phases_done = gauge("perennial_phases_done", "Phases finished.")
        self.phase = gauge(
            "perennial_phase",
            "1 for the phase at work.",
            ["kind", "method", "seed", "step"],
        )
        self.progress = gauge(
            "perennial_progress_timestamp_seconds",
            "When a rank last did something else, or a unit or a phase was done.",
        )
        self._remaining = gauge(
            "perennial_remaining_seconds",
            "How long the phase at work (of=phase) and all training of the run (of=run) still take "
            "at the rate since the driver began them; no value while there is none.",
            ["of"],
        )
        self.ranks_expected = gauge(
            "perennial_ranks_expected", "Ranks that should train now; 0 outside training."
        )
        self.ranks_heard = gauge(
            "perennial_ranks_heard", "Ranks that the driver has heard of within five seconds."
        )
        self.accuracy = gauge(
            "perennial_accuracy_ratio",
            "What the model of a learning step reached on a test.",
            ["method", "seed", "step", "measure"],
        )
        self.accuracy_change = gauge(
            "perennial_accuracy_change_ratio",
            "The newest learning step's accuracy minus that of the step before.",
            ["method", "seed", "measure"],
        )
        self.compatible = gauge(
            "perennial_compatible",
            "1 where the newest model compared meets the compatibility criterion, 0 where not.",
            ["method", "seed"],
        )
        disk = partial(psutil.disk_usage, str(folder))
        self.disk_free = gauge(
            "perennial_run_disk_free_bytes", "Free room on the disk of the run folder."
        )
        self.disk_free.set_function(lambda: disk().free)
        self.disk_size = gauge("perennial_run_disk_size_bytes", "Size of the run folder's disk.")
        self.disk_size.set_function(lambda: disk().total)
        self.started.set_to_current_time()
        self.phases.set(phases)
        self.phases_done.set(done)
        self.gets_on()
        self.measured()

    def gets_on(self) -> None:
        """Something was done."""
        self.progress.set(time.time())

    def begin(self, phase: str) -> None:
        """A phase METHOD/seed-S/step-T/KIND starts."""
        method, seed, step, kind = phase.rsplit("/", 3)
        self.phase.clear()
        number = seed.removeprefix("seed-"), step.removeprefix("step-")
        self.phase.labels(kind, method, *number).set(1)
        self.gets_on()

    def remains(self, phase: float | None, run: float | None) -> None:
        """Seconds that the phase at work and the whole run still take, where that is known."""
        self._remaining.clear()
        for of, seconds in (("phase", phase), ("run", run)):
            if seconds is not None:
                self._remaining.labels(of).set(seconds)

    def ranks(self, expected: int, heard: int) -> None:
        """How many ranks there should be, and how many are."""
        self.ranks_expected.set(expected)
        self.ranks_heard.set(heard)

    def end(self) -> None:
        """The phase is finished."""
        self.phases_done.inc()
        self.ranks(0, 0)
        self.measured()
        self.gets_on()

    def measured(self) -> None:
        """Reads what evaluations and comparisons the run folder holds."""
        reached: dict[tuple[str, str, str], dict[int, float]] = {}
        for found in evaluations(self.folder):
            method, seed, step = found["method"], str(found["seed"]), found["step"]
            for measure, (_, value) in figures(found).items():
                self.accuracy.labels(method, seed, str(step), measure).set(value)
                reached.setdefault((method, seed, measure), {})[step] = value
        for labels, by_step in reached.items():
            newest = max(by_step)
            if newest - 1 in by_step and labels[2] not in HARDER_EACH_STEP:
                change = by_step[newest] - by_step[newest - 1]
                self.accuracy_change.labels(*labels).set(change)
        for chain, holds in _compatible(self.folder).items():
            self.compatible.labels(*chain).set(holds)


def _compatible(folder: Path) -> dict[Chain, bool]:
    """By method and seed whether the newest step's ``compatibility.json`` says that it holds."""
    newest: dict[Chain, tuple[int, Path]] = {}
    for where, file in step_files(folder, COMPARISONS_FILE):
        chain, this = (where["method"], str(where["seed"])), (where["step"], file)
        newest[chain] = max(newest.get(chain, this), this)
    read = ((chain, read_value(file, COMPARISONS)) for chain, (_, file) in newest.items())
    return {chain: found["holds"] for chain, found in read if found is not None}


@contextmanager
def monitored(
    metrics: RunMetrics, port: int | None, host: str, superseded: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Serves a run's metrics while it goes on; what earlier attempts left in targets/ goes.

    After a good end it stays, where Prometheus watches, until that has seen what the last learning
    step reached, but not longer than a minute.
    Then, or after Ctrl-C, nothing is left to be scraped. After an error, SIGTERM or a kill the
    driver's target stays: somebody should start the run again. Where this attempt was `superseded`,
    what is there is the later one's.
    """
    targets, scrapes = metrics.folder / TARGETS_FOLDER, Scrapes()
    _clear(targets)
    try:
        target = target_file(metrics.folder, "driver")
        with serving(metrics.registry, target, {"job": "driver"}, port, host, scrapes):
            yield
            scrapes.one_more(_LAST_SCRAPE_SECONDS)
    except KeyboardInterrupt:
        if not superseded():
            _clear(targets)
        raise
    _clear(targets)


def _clear(targets: Path) -> None:
    for file in targets.glob("*.json"):
        file.unlink(missing_ok=True)
