"""A run without Ray: each process that `torchrun` starts is a rank, and rank 0 is the driver, too.

    torchrun --nproc-per-node 2 -m launch.ranks CONFIG [key=value ...] --out RUN

The phases, the ledger and the results are those of `perennial run`. The ranks take the units of CPU
phases in turns, and train together; the others wait for rank 0's word meanwhile. Whatever ends one
of them ends all; what stands above starts them again, and they go on from the ledger. Nobody
connects to `cluster.address`.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_shards.settings import InputError
from launch.config.cluster import ClusterSettings
from launch.config.run import RunConfig
from launch.execution.rank import RankJob, S, Surroundings, do_job
from launch.execution.ray_cluster import check_gpus
from launch.exits import Preempted
from launch.inference.worker import ShardWorker, T, Unit
from launch.runs.lease import Fence
from launch.runs.records import Records
from launch.runs.run import Run
from monitoring.metrics import Metrics
from monitoring.progress import RunProgress
from trainer.activity import Activity
from trainer.heads.collectives import Ranks

_WAITING = timedelta(days=365)
"""For rank 0's word: a rank that dies ends all of them by other means."""
END = ("end",)


class Rank:
    """What a rank does when rank 0 says so."""

    def __init__(self, config: RunConfig, folder: Path, word: Ranks, stop: threading.Event) -> None:
        """`word` is a gloo group of all ranks, for what they say to each other."""
        self._config, self._folder, self._word, self._stop = config, folder, word, stop
        self._shard_worker: ShardWorker | None = None

    def map(
        self, fence: Fence, unit: Unit[Any], calls: list[tuple[Any, ...]]
    ) -> list[tuple[Any, str | None, bool]]:
        """Does the call of this rank's number, if there is one.

        On rank 0 returns what each rank found: a result, or an error in words, and whether it was
        asked to stop.
        """
        found, error = None, None
        try:
            if self._word.rank < len(calls):
                found = self._worker(fence).run(unit, *calls[self._word.rank])
        except InputError as wrong:
            error = str(wrong)
        first = self._word.rank == 0
        every: list[Any] | None = [None] * self._word.world if first else None
        answer = found, error, self._stop.is_set()
        dist.gather_object(answer, every, dst=0, group=self._word.group)
        return every or []

    def _worker(self, fence: Fence) -> ShardWorker:
        if self._shard_worker is None:
            config, number = self._config, str(self._word.rank)
            self._shard_worker = ShardWorker(
                config.dataset_location(),
                config.data.cache,
                config.cluster.worker_threads(),
                self._folder / "targets" / f"actor-{number}.json",
                number,
                fence,
                config.cluster.metrics_host,
            )
        return self._shard_worker

    def do(
        self, fence: Fence, phase: str, job: RankJob[S], spec: S, progress: RunProgress | None
    ) -> None:
        """Does a job with the others; `progress` is rank 0's. Raises InputError as the job does."""
        if self._shard_worker is not None:  # training holds no old model
            self._shard_worker.close()
            self._shard_worker = None
        ranks, metrics = Ranks.default(), Metrics()
        activity = Activity(metrics.count_doing)
        activity.stop = self._stop
        records = None if progress is None else Records(self._folder, progress)

        def post(record: dict[str, Any]) -> None:
            if progress is not None and records is not None:
                records.keep(record)
                turns = activity.read().turns  # nobody gets on without the others
                progress.ranks(ranks.world, ranks.world, turns)

        def open_run(metrics: Metrics) -> Run:
            return Run.open(self._folder, self._config, metrics.count_cache, fence)

        where = Surroundings(phase, ranks, post, with_driver=progress is not None)
        do_job(job, spec, open_run, where, metrics, activity)

    def follow(self) -> None:
        """Does what rank 0 says until the end."""
        while (order := self._word.broadcast_object(None)) != END:
            if order[0] == "map":
                self.map(*order[1:])
            else:
                _, fence, phase, job, spec = order
                self.do(fence, phase, job, spec, None)


class TorchrunExecutor:
    """The executor of rank 0: all ranks, itself among them; see `Executor`."""

    def __init__(self, word: Ranks, run: Run, progress: RunProgress, stop: threading.Event) -> None:
        self._word, self._progress, self._stop = word, progress, stop
        self._fence = run.fence
        self._own = Rank(run.config, run.folder, word, stop)
        self.amid = False
        """Whether the others do what they were told, and hear no word."""

    @contextmanager
    def _told(self, *order: Any) -> Iterator[None]:
        self.amid = True
        self._word.broadcast_object(order)
        yield
        self.amid = False

    def map(self, unit: Unit[T], calls: list[tuple[Any, ...]]) -> list[T]:
        results: list[T] = []
        while len(results) < len(calls):
            if self._stop.is_set():
                raise Preempted("a CPU phase")
            turn = calls[len(results) :][: self._word.world]
            with self._told("map", self._fence, unit, turn):
                answers = self._own.map(self._fence, unit, turn)
            if any(stopped for _, _, stopped in answers):
                self._stop.set()
            for found, error, _ in answers[: len(turn)]:
                if error is not None:
                    raise InputError(error)
                results.append(found)
            self._progress.units(len(results), len(calls))
        return results

    def on_ranks(self, phase: str, job: RankJob[S], spec: S) -> None:
        with self._told("job", self._fence, phase, job, spec):
            self._own.do(self._fence, phase, job, spec, self._progress)


def join(cluster: ClusterSettings) -> Ranks:
    """Makes this process a rank of torchrun's; returns a group for words beside the tensors'."""
    torch.set_num_threads(cluster.worker_threads())
    check_gpus(cluster, int(os.environ["LOCAL_WORLD_SIZE"]))
    if cluster.gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
    backend = "nccl" if cluster.gpu else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=2 * cluster.stalled_seconds))
    words = dist.new_group(backend="gloo", timeout=_WAITING)
    return Ranks(dist.get_rank(), dist.get_world_size(), words)
