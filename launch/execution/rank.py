"""A training rank: it does the jobs of phases, serves its metrics, keeps its log."""

import ctypes
import gc
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from data_shards.storage.remote import Count, Event
from launch.config.cluster import ClusterSettings
from launch.runs.run import Run
from monitoring.exporter import serving
from monitoring.logs import LOG, logging_to
from monitoring.metrics import Metrics
from monitoring.progress import in_words
from monitoring.run_folder import target_file
from trainer.activity import Activity
from trainer.divergence import Diverged
from trainer.heads.collectives import Ranks


@dataclass(frozen=True)
class RankContext:
    """What a job finds on its rank."""

    run: Run
    """Opened by this process, with the fence of its attempt."""
    ranks: Ranks
    device: torch.device
    metrics: Metrics
    activity: Activity
    """To be told what the rank turns to; says when to save and return."""
    report: Callable[[dict[str, Any]], None]
    """Logs a record, and on rank 0 brings it to the driver."""
    tell: Callable[[str], None]
    """Brings a line to the user."""


S = TypeVar("S")
RankJob = Callable[[RankContext, S], None]
"""A job that all ranks do together. Its spec is plain values that every rank is given alike."""


class RankJobs:
    """Does job after job on this rank; the run is opened once, for the first."""

    def __init__(
        self,
        open_run: Callable[[Count], Run],
        ranks: Ranks,
        post: Callable[[dict[str, Any]], None],
        *,
        with_driver: bool,
    ) -> None:
        """`open_run` is given what counts its cache's use, `post` brings records to the driver.

        `with_driver`: this is the driver's own process, which has a log.
        """
        self._open_run, self._ranks, self._post = open_run, ranks, post
        self._with_driver = with_driver
        self._run: Run | None = None
        self._metrics = Metrics()

    def do(
        self,
        job: RankJob[S],
        spec: S,
        *,
        phase: str,
        metrics: Metrics,
        activity: Activity,
        restarts: int = 0,
    ) -> None:
        """Does a phase's job, with its metrics served and its log kept.

        `phase` names it in records and logs, `restarts` says how often it had been begun before.
        Raises what the job does; after Diverged another can be done.
        """
        self._metrics = metrics
        if self._run is None:
            self._run = self._open_run(self._count)
        run, rank, post = self._run, self._ranks.rank, self._post
        cluster, local = run.config.cluster, int(os.environ.get("LOCAL_RANK", "0"))
        metrics.phase_started.set_to_current_time()
        metrics.restarts.inc(restarts)
        start = {"event": "restart" if restarts else "start", "rank": rank}
        if restarts and rank == 0:
            start["message"] = f"{phase}: the workers were started again ({restarts})"
        post({"phase": phase, "pid": os.getpid(), **start})

        def report(record: dict[str, Any]) -> None:
            record = {"phase": phase, "restarts": restarts, **record}
            LOG.info("%s", record.get("message") or in_words(record))
            if rank == 0:
                post(record)

        def tell(line: str) -> None:
            LOG.warning("%s", line)
            post({"phase": phase, "notice": line})

        endpoint = serving(
            metrics.registry,
            target_file(run.folder, f"trainer-{rank}"),
            {"job": "trainer", "rank": str(rank)},
            **cluster.metrics_endpoint(local),
        )
        logged = nullcontext() if self._with_driver else _log(run.folder, phase, rank, metrics)
        with logged, endpoint:
            LOG.info("%ss on %s, process %s", start["event"], socket.gethostname(), os.getpid())
            device, diverged = device_of(cluster, local), ""
            context = RankContext(
                run=run,
                ranks=self._ranks,
                device=device,
                metrics=metrics,
                activity=activity,
                report=report,
                tell=tell,
            )
            try:
                job(context, spec)
            except Diverged as error:  # in words: the error itself would keep the model's memory
                diverged = str(error)
        run.dataset.files.rest()
        _free(device)
        if diverged:
            raise Diverged(diverged)

    def _count(self, event: Event, amount: int) -> None:
        """The run stays open from job to job, and each job counts for itself."""
        self._metrics.count_cache(event, amount)


def _free(device: torch.device) -> None:
    """Gives memory back that a job no longer uses: others work while this process waits."""
    gc.collect()  # DeepSpeed's engine refers to itself
    if device.type == "cuda":
        torch.cuda.empty_cache()
    # glibc keeps what was freed, others' C libraries have no such call
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)


def device_of(cluster: ClusterSettings, local: int) -> torch.device:
    """The device of a machine's `local`-th rank, made its current one."""
    if not cluster.gpu:
        return torch.device("cpu")
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _log(folder: Path, phase: str, rank: int, metrics: Metrics) -> AbstractContextManager[None]:
    """The log of a rank that has a process of its own."""
    where = {"run": folder.name, "job": "trainer", "rank": rank, "phase": phase}

    def context() -> dict[str, Any]:
        return {"iteration": int(metrics.registry.get_sample_value("perennial_iteration") or 0)}

    return logging_to(folder, f"trainer-{rank}", where, context)
