"""The Prometheus metrics of a process: one object, given to whatever counts."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SKIP_REASONS = ("loss", "spike", "gradient", "overflow")
"""Why an update is not made: the `trainer.guard.Fault`s that skip one."""


class Metrics:
    """Metrics of one worker or actor, in a registry of their own: base units, bounded labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.iterations = counter("perennial_iterations_total", "Optimiser updates.")
        self.iteration = gauge("perennial_iteration", "Iteration of the phase that was done last.")
        self.images = counter("perennial_images_total", "Images in the global batches trained on.")
        self.loss = gauge("perennial_loss", "Weighted sum of the terms.")
        self.term = gauge("perennial_loss_term", "A term of the loss, before its weight.", ["term"])
        self.learning_rate = gauge(
            "perennial_learning_rate", "Learning rate of the iteration that was done last."
        )
        self.data_wait = counter("perennial_data_wait_seconds_total", "Time waited for input.")
        self._doing = counter(
            "perennial_doing_seconds_total",
            "Time by what the rank was doing. Reading input, teacher and forward are its own work, "
            "exchanging within them apart; all else may hold waiting for other ranks.",
            ["doing"],
        )
        self.iteration_seconds = histogram(
            "perennial_iteration_seconds",
            "Duration of an iteration, averaged over a logging interval.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
        )
        self.quarantined = counter(
            "perennial_quarantined_samples_total", "Damaged samples replaced by the next in order."
        )
        self.quarantine_budget = gauge(
            "perennial_quarantine_budget_samples",
            "Damaged samples above which the phase ends with an error (data.max_quarantined).",
        )
        self._cache = {
            "hit": counter(
                "perennial_cache_hits_total", "Remote shards opened that the cache held."
            ),
            "miss": counter(
                "perennial_cache_misses_total", "Remote shards opened that had to be fetched."
            ),
            "evicted": counter("perennial_cache_evictions_total", "Shards deleted for others."),
            "retry": counter(
                "perennial_cache_retries_total", "Fetches tried again after a failure."
            ),
            "mismatch": counter(
                "perennial_cache_mismatches_total",
                "Fetched shards that did not match their sha256, and were thrown away.",
            ),
            "downloaded": counter(
                "perennial_cache_downloaded_bytes_total", "Bytes of whole shards fetched."
            ),
        }
        self.checkpoints_saved = counter(
            "perennial_checkpoints_saved_total", "Checkpoints that are complete."
        )
        self.checkpoints_failed = counter(
            "perennial_checkpoints_failed_total",
            "Checkpoints that could not be written; training went on.",
        )
        self.checkpoints_damaged = counter(
            "perennial_checkpoints_damaged_total",
            "Checkpoints and pointers to them found damaged, and passed over.",
        )
        self.checkpoint_saved_at = gauge(
            "perennial_checkpoint_timestamp_seconds", "When the newest checkpoint became complete."
        )
        self.checkpoint_pause = counter(
            "perennial_checkpoint_pause_seconds_total", "Time that training stood still to save."
        )
        self.skipped = counter(
            "perennial_skipped_updates_total",
            "Updates not made because of the loss, a spike, a gradient or a float16 overflow.",
            ["reason"],
        )
        for reason in SKIP_REASONS:  # a counter that starts at 1 shows no increase
            self.skipped.labels(reason)
        self.rewinds = counter(
            "perennial_rewinds_total",
            "Times that the phase went back to a checkpoint, over all its restarts.",
        )
        self.restarts = counter(
            "perennial_restarts_total",
            "Times that the phase's workers were started again since the driver started it.",
        )
        self.loss_scale = gauge("perennial_loss_scale", "Multiplier of float16 gradients.")
        self.step = gauge("perennial_learning_step", "Learning step at work.")
        self.phase_started = gauge(
            "perennial_phase_start_timestamp_seconds", "When the phase began."
        )
        self.embedded = counter(
            "perennial_embedded_images_total", "Images embedded by the CPU actors."
        )

    def count_cache(self, event: str, amount: int) -> None:
        """Counts what the cache of remote shards does (`data_shards.storage.remote.Event`)."""
        self._cache[event].inc(amount)

    def count_doing(self, doing: str, seconds: float) -> None:
        """Counts what a rank has done for how long (`trainer.activity.Activity`)."""
        self._doing.labels(doing).inc(seconds)
