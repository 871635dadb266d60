"""A run without Ray: each process that `torchrun` starts is a rank, and rank 0 is the driver, too.

    torchrun --nproc-per-node 2 -m launch.ranks CONFIG [key=value ...] --out RUN

The phases, the ledger and the results are those of `perennial run`. The ranks take the units of CPU
phases in turns, and train together; the others wait for rank 0's word meanwhile. Whatever ends one
of them ends all; what stands above starts them again, and they go on from the ledger. Nobody
connects to `cluster.address`.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_shards.settings import InputError
from data_shards.storage.remote import Count
from launch.config.cluster import ClusterSettings
from launch.config.run import RunConfig
from launch.execution.in_process import shard_worker
from launch.execution.rank import RankJob, RankJobs, S
from launch.execution.ray_cluster import check_gpus
from launch.exits import Preempted
from launch.inference.worker import ShardWorker, T, Unit, done_of
from launch.runs.lease import Fence
from launch.runs.records import Records
from launch.runs.run import Run
from monitoring.metrics import Metrics
from monitoring.progress import RunProgress
from trainer.activity import Activity
from trainer.divergence import Diverged
from trainer.heads.collectives import Ranks

_WAITING = timedelta(days=365)
"""For rank 0's word: `RanksWatch` and torchrun end all of them where one is gone."""
END = ("end",)


class Rank:
    """What a rank does when rank 0 says so."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        word: Ranks,
        stop: threading.Event,
        *,
        hear: Callable[[dict[str, Any], int], None] | None = None,
    ) -> None:
        """`word` is a gloo group of all ranks, for what they say to each other.

        `hear` is rank 0's: told what it reports of a job, and how many turns that has taken.
        """
        self._config, self._folder, self._word, self._stop = config, folder, word, stop
        self._hear = hear
        self._shard_worker: ShardWorker | None = None
        self._jobs: RankJobs | None = None
        self._activity = Activity()

    def map(
        self, fence: Fence, unit: Unit[Any], calls: list[tuple[Any, ...]]
    ) -> list[tuple[Any, InputError | None, bool]]:
        """Does the call of this rank's number, if there is one.

        On rank 0 returns what each rank found: a result or an error, and whether it was asked to
        stop.
        """
        found: Any = None
        error: InputError | None = None
        try:
            if self._word.rank < len(calls):
                found = self._worker(fence).run(unit, *calls[self._word.rank])
        except InputError as wrong:
            error = wrong
        return self._gathered((found, error, self._stop.is_set()))

    def _gathered(self, answer: Any) -> list[Any]:
        """On rank 0, what each rank answers."""
        every: list[Any] | None = [None] * self._word.world if self._word.rank == 0 else None
        dist.gather_object(answer, every, dst=0, group=self._word.group)
        return every or []

    def _worker(self, fence: Fence) -> ShardWorker:
        if self._shard_worker is None:
            self._shard_worker = shard_worker(self._config, self._folder, self._word.rank, fence)
        return self._shard_worker

    def do(self, fence: Fence, phase: str, job: RankJob[S], spec: S) -> None:
        """Does a job with the others. Raises InputError as the job does, but Diverged on rank 0
        alone, of whichever rank, once all have ended it."""
        if self._shard_worker is not None:  # training holds no old model
            self._shard_worker.close()
            self._shard_worker = None
        if self._jobs is None:

            def open_run(count: Count) -> Run:
                return Run.open(self._folder, self._config, count, fence)

            first = self._hear is not None
            self._jobs = RankJobs(open_run, Ranks.default(), self._post, with_driver=first)
        metrics = Metrics()
        self._activity = Activity(metrics.count_doing)
        self._activity.stop = self._stop
        diverged: Diverged | None = None
        try:
            self._jobs.do(job, spec, phase=phase, metrics=metrics, activity=self._activity)
        except Diverged as error:
            diverged = error
        for found in self._gathered(diverged):
            if found is not None:
                raise found

    def _post(self, record: dict[str, Any]) -> None:
        if self._hear is not None:
            self._hear(record, self._activity.read().turns)

    def follow(self) -> None:
        """Does what rank 0 says until the end."""
        while (order := self._word.broadcast_object(None)) != END:
            if order[0] == "map":
                self.map(*order[1:])
            else:
                self.do(*order[1:])


class TorchrunExecutor:
    """The executor of rank 0: all ranks, itself among them; see `Executor`."""

    def __init__(self, word: Ranks, run: Run, progress: RunProgress, stop: threading.Event) -> None:
        self._word, self._progress, self._stop = word, progress, stop
        self._fence = run.fence
        self._records = Records(run.folder, progress)
        self._own = Rank(run.config, run.folder, word, stop, hear=self._hear)
        self.amid = False
        """Whether the others do what they were told, and hear no word."""

    @contextmanager
    def _told(self, *order: Any) -> Iterator[None]:
        self.amid = True
        self._word.broadcast_object(order)
        try:
            yield
        except Diverged:
            self.amid = False
            raise
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
                    raise error
                results.append(found)
            images = done_of(calls, range(len(results)))
            self._progress.units(len(results), len(calls), images)
        return results

    def on_ranks(self, phase: str, job: RankJob[S], spec: S) -> None:
        with self._told("job", self._fence, phase, job, spec):
            self._own.do(self._fence, phase, job, spec)

    def _hear(self, record: dict[str, Any], turns: int) -> None:
        self._records.keep(record)
        world = self._word.world
        self._progress.ranks(world, world, turns)  # nobody gets on without the others


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
