"""The Prometheus metrics of a process: one object, given to whatever counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Metrics of one worker or actor, in a registry of their own: base units, bounded labels."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.iterations = Counter(
            "perennial_iterations_total", "Optimiser updates.", registry=registry
        )
        self.images = Counter(
            "perennial_images_total", "Images in the global batches trained on.", registry=registry
        )
        self.loss = Gauge("perennial_loss", "Weighted sum of the terms.", registry=registry)
        self.data_wait = Counter(
            "perennial_data_wait_seconds_total", "Time waited for input.", registry=registry
        )
        self.iteration_seconds = Histogram(
            "perennial_iteration_seconds",
            "Duration of an iteration, averaged over a logging interval.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
            registry=registry,
        )
        self.quarantined = Counter(
            "perennial_quarantined_samples_total",
            "Damaged samples replaced by the next in order.",
            registry=registry,
        )
        self._cache = {
            "hit": Counter(
                "perennial_cache_hits_total",
                "Remote shards opened that the cache held.",
                registry=registry,
            ),
            "miss": Counter(
                "perennial_cache_misses_total",
                "Remote shards opened that had to be fetched.",
                registry=registry,
            ),
            "evicted": Counter(
                "perennial_cache_evictions_total", "Shards deleted for others.", registry=registry
            ),
            "retry": Counter(
                "perennial_cache_retries_total",
                "Fetches tried again after a failure.",
                registry=registry,
            ),
            "mismatch": Counter(
                "perennial_cache_mismatches_total",
                "Fetched shards that did not match their sha256, and were thrown away.",
                registry=registry,
            ),
            "downloaded": Counter(
                "perennial_cache_downloaded_bytes_total",
                "Bytes of whole shards fetched.",
                registry=registry,
            ),
        }
        self.checkpoints_saved = Counter(
            "perennial_checkpoints_saved_total", "Checkpoints that are complete.", registry=registry
        )
        self.checkpoints_failed = Counter(
            "perennial_checkpoints_failed_total",
            "Checkpoints that could not be written; training went on.",
            registry=registry,
        )
        self.checkpoints_damaged = Counter(
            "perennial_checkpoints_damaged_total",
            "Checkpoints and pointers to them found damaged, and passed over.",
            registry=registry,
        )
        self.checkpoint_saved_at = Gauge(
            "perennial_checkpoint_timestamp_seconds",
            "When the newest checkpoint became complete.",
            registry=registry,
        )
        self.checkpoint_pause = Counter(
            "perennial_checkpoint_pause_seconds_total",
            "Time that training stood still to save.",
            registry=registry,
        )
        self.skipped = Counter(
            "perennial_skipped_updates_total",
            "Updates not made because of the loss, a spike, a gradient or a float16 overflow.",
            ["reason"],
            registry=registry,
        )
        self.rewinds = Counter(
            "perennial_rewinds_total",
            "Times that the phase went back to a checkpoint, over all its restarts.",
            registry=registry,
        )
        self.restarts = Counter(
            "perennial_restarts_total",
            "Times that the phase's workers were started again since the driver started it.",
            registry=registry,
        )
        self.loss_scale = Gauge(
            "perennial_loss_scale", "Multiplier of float16 gradients.", registry=registry
        )
        self.step = Gauge("perennial_learning_step", "Learning step at work.", registry=registry)
        self.phase_started = Gauge(
            "perennial_phase_start_timestamp_seconds", "When the phase began.", registry=registry
        )
        self.embedded = Counter(
            "perennial_embedded_images_total",
            "Images embedded by the CPU actors.",
            registry=registry,
        )

    def count_cache(self, event: str, amount: int) -> None:
        """Counts what the cache of remote shards does (`data_shards.remote.Event`)."""
        self._cache[event].inc(amount)
