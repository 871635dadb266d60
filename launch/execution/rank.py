"""A training rank: it does the jobs of phases, serves its metrics, keeps its log."""

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from launch.config.cluster import ClusterSettings
from launch.runs.run import Run
from monitoring.exporter import serving
from monitoring.logs import LOG, logging_to
from monitoring.metrics import Metrics
from monitoring.progress import in_words
from trainer.activity import Activity
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


@dataclass(frozen=True)
class Surroundings:
    """Where a rank's job runs, which depends on who started the rank."""

    phase: str
    """The phase's name, in records and logs."""
    ranks: Ranks
    post: Callable[[dict[str, Any]], None]
    """Brings records to the driver."""
    with_driver: bool
    """Whether this is the driver's process, which has a log."""
    restarts: int = 0
    """How often the rank had begun this job before."""


def do_job(
    job: RankJob[S],
    spec: S,
    open_run: Callable[[Metrics], Run],
    where: Surroundings,
    metrics: Metrics,
    activity: Activity,
) -> None:
    """Does a phase's job on this rank, with its metrics served and its log kept.

    `open_run` opens the run with the counters of these `metrics`. Raises what the job does.
    """
    run = open_run(metrics)
    rank, phase, restarts = where.ranks.rank, where.phase, where.restarts
    cluster, local = run.config.cluster, int(os.environ.get("LOCAL_RANK", "0"))
    metrics.phase_started.set_to_current_time()
    metrics.restarts.inc(restarts)
    start = {"event": "restart" if restarts else "start", "rank": rank}
    if restarts and rank == 0:
        start["message"] = f"{phase}: the workers were started again ({restarts})"
    where.post({"phase": phase, "pid": os.getpid(), **start})

    def report(record: dict[str, Any]) -> None:
        record = {"phase": phase, "restarts": restarts, **record}
        LOG.info("%s", record.get("message") or in_words(record))
        if rank == 0:
            where.post(record)

    def tell(line: str) -> None:
        LOG.warning("%s", line)
        where.post({"phase": phase, "notice": line})

    endpoint = serving(
        metrics.registry,
        run.folder / "targets" / f"trainer-{rank}.json",
        {"job": "trainer", "rank": str(rank)},
        **cluster.metrics_endpoint(local),
    )
    logged = nullcontext() if where.with_driver else _log(run.folder, phase, rank, metrics)
    with logged, endpoint:
        LOG.info("%ss on %s, process %s", start["event"], socket.gethostname(), os.getpid())
        device = device_of(cluster, local)
        job(RankContext(run, where.ranks, device, metrics, activity, report, tell), spec)


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
