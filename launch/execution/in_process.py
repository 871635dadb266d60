"""An executor that does everything in the process that calls it: one rank, and units in turn."""

import math
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from data_shards.settings import InputError
from data_shards.storage.remote import Count
from launch.config.cluster import ClusterSettings
from launch.config.run import RunConfig
from launch.execution.executor import OpenExecutor
from launch.execution.failures import last_line
from launch.execution.heartbeat import Beat, Standing, diagnose
from launch.execution.rank import RankJob, RankJobs, S
from launch.exits import Preempted
from launch.inference.worker import ShardWorker, T, Unit, done_of
from launch.runs.lease import Fence
from launch.runs.records import Records
from launch.runs.run import Run
from monitoring.metrics import Metrics
from monitoring.progress import RunProgress
from monitoring.run_folder import target_file
from trainer.activity import Activity
from trainer.engine import ensure_process_group
from trainer.heads.collectives import Ranks

_POLL_SECONDS = 0.2


class InProcess:
    """See `Executor`. Nothing is started again here: what fails ends the run."""

    def __init__(self, run: Run, progress: RunProgress, stop: threading.Event) -> None:
        self._run, self._progress, self._stop = run, progress, stop
        self._records = Records(run.folder, progress)
        self._shard_worker: ShardWorker | None = None
        self._jobs: RankJobs | None = None

    def map(self, unit: Unit[T], calls: list[tuple[Any, ...]]) -> list[T]:
        results: list[T] = []
        if self._shard_worker is None:
            self._shard_worker = shard_worker(
                self._run.config, self._run.folder, rank=0, fence=self._run.fence
            )
        for call in calls:
            if self._stop.is_set():
                raise Preempted("a CPU phase")
            results.append(self._shard_worker.run(unit, *call))
            images = done_of(calls, range(len(results)))
            self._progress.units(len(results), len(calls), images)
        return results

    def on_ranks(self, phase: str, job: RankJob[S], spec: S) -> None:
        self.close()  # training holds no old model
        cluster, metrics = self._run.config.cluster, Metrics()
        activity = Activity(metrics.count_doing)
        activity.stop = self._stop
        ended: list[BaseException | None] = []

        def work() -> None:
            try:
                torch.set_num_threads(cluster.worker_threads())
                self._rank().do(job, spec, phase=phase, metrics=metrics, activity=activity)
                ended.append(None)
            except BaseException as error:  # raised below, by the thread that waits
                ended.append(error)

        # a thread, so that this one finds out when it stands still
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        standing = Standing()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            self._run.fence.check()
            doing = standing.look(activity.read())
            beat = Beat(phase, rank=0, node="", pid=os.getpid(), born=0.0, doing=doing)
            self._progress.ranks(1, 1, beat.doing.turns)
            guilty, why = diagnose([beat], math.inf, cluster.stalled_seconds)
            if guilty and thread.is_alive():
                raise InputError(f"{why}: see cluster.stalled_seconds; run again to go on")
        if isinstance(ended[0], InputError):
            raise ended[0]
        if ended[0] is not None and not self._stop.is_set():
            raise InputError(f"{phase} failed: {last_line(ended[0])}") from ended[0]

    def _rank(self) -> RankJobs:
        if self._jobs is None:
            ensure_process_group()

            def open_run(count: Count) -> Run:
                return Run.open(self._run.folder, self._run.config, count, self._run.fence)

            self._jobs = RankJobs(open_run, Ranks.default(), self._keep, with_driver=True)
        return self._jobs

    def _keep(self, record: dict[str, Any]) -> None:
        self._run.fence.check()
        self._records.keep(record)

    def close(self) -> None:
        """Ends what serves units, until there are some again."""
        if self._shard_worker is not None:
            self._shard_worker.close()
            self._shard_worker = None


def shard_worker(config: RunConfig, folder: Path, rank: int, fence: Fence) -> ShardWorker:
    """One for the run in `folder`, in this process, which is a rank, too."""
    return ShardWorker(
        config.dataset_location(),
        config.data.cache,
        threads=config.cluster.worker_threads(),
        target_file=target_file(folder, f"actor-{rank}"),
        name=str(rank),
        fence=fence,
        host=config.cluster.metrics_host,
    )


@contextmanager
def in_process(_: ClusterSettings) -> Iterator[OpenExecutor]:
    """Executors that need no cluster."""
    with ExitStack() as opened:

        def make(run: Run, progress: RunProgress, stop: threading.Event) -> InProcess:
            executor = InProcess(run, progress, stop)
            opened.callback(executor.close)
            return executor

        yield make
