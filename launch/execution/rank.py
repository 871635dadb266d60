"""What Ray Train runs on each rank of a training phase."""

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from data_shards.settings import InputError
from launch.config.run import RunConfig
from launch.execution.failures import crash_file, crash_told
from launch.execution.heartbeat import Heartbeat
from launch.runs.lease import Fence
from launch.runs.run import Chain, Run
from monitoring.exporter import serving
from monitoring.logs import LOG, logging_to
from monitoring.metrics import Metrics
from monitoring.progress import in_words
from trainer.activity import Activity
from trainer.engine import ensure_process_group
from trainer.heads.collectives import Ranks
from trainer.loop import train


def _log(folder: Path, phase: str, rank: int, metrics: Metrics) -> AbstractContextManager[None]:
    """The log of a rank that has a process of its own."""
    where = {"run": folder.name, "job": "trainer", "rank": rank, "phase": phase}

    def context() -> dict[str, Any]:
        return {"iteration": int(metrics.registry.get_sample_value("perennial_iteration") or 0)}

    return logging_to(folder, f"trainer-{rank}", where, context)


def worker(spec: dict[str, Any]) -> None:
    """Trains one learning step on this rank.

    Errors that repeating cannot mend are posted too, so that the driver stops the run for them
    instead of letting Ray restart the group. Asked to stop, it saves a checkpoint and returns.
    """
    import ray  # the driver sets the environment that it reads when it is imported

    config = RunConfig.model_validate(spec["config"])
    torch.set_num_threads(config.cluster.worker_threads())
    ensure_process_group()
    ranks = Ranks.default()
    mailbox, phase = spec["mailbox"], spec["phase"]
    try:
        metrics = Metrics()
        fence: Fence = spec["fence"]
        fence.check()
        run = Run.open(spec["folder"], config, metrics.count_cache, fence)
        chain, step = Chain(spec["method"], spec["seed"]), spec["step"]
        restarts = ray.get(mailbox.start.remote(phase, ranks.rank))
        activity = Activity(metrics.count_doing)

        def post(record: dict[str, Any]) -> None:
            mailbox.post.remote(record)

        alone = config.cluster.workers == 0
        file = crash_file(run.folder, ranks.rank)
        told = nullcontext() if alone else crash_told(file)
        with told, Heartbeat(mailbox, phase, ranks.rank, activity, fence.lost):
            train_rank(run, phase, chain, step, ranks, metrics, activity, post, alone, restarts)
    except InputError as error:
        mailbox.post.remote({"phase": phase, "error": str(error)})
        raise


def train_rank(
    run: Run,
    phase: str,
    chain: Chain,
    step: int,
    ranks: Ranks,
    metrics: Metrics,
    activity: Activity,
    post: Callable[[dict[str, Any]], None],
    with_driver: bool,
    restarts: int = 0,
) -> None:
    """Trains one learning step on this rank, serves its metrics and keeps its log.

    `post` brings records to the driver; `with_driver` says that this is the driver's process, which
    has a log.
    """
    metrics.step.set(step)
    metrics.phase_started.set_to_current_time()
    metrics.restarts.inc(restarts)
    start = {"event": "restart" if restarts else "start", "rank": ranks.rank}
    if restarts and ranks.rank == 0:
        start["message"] = f"{phase}: the workers were started again ({restarts})"
    post({"phase": phase, "pid": os.getpid(), **start})
    local, cluster = int(os.environ.get("LOCAL_RANK", "0")), run.config.cluster
    endpoint = serving(
        metrics.registry,
        run.folder / "targets" / f"trainer-{ranks.rank}.json",
        {"job": "trainer", "rank": str(ranks.rank)},
        **cluster.metrics_endpoint(local),
    )
    logged = nullcontext() if with_driver else _log(run.folder, phase, ranks.rank, metrics)

    def report(record: dict[str, Any]) -> None:
        record = {"phase": phase, "restarts": restarts, **record}
        LOG.info("%s", record.get("message") or in_words(record))
        if ranks.rank == 0:
            post(record)

    def tell(line: str) -> None:
        LOG.warning("%s", line)
        post({"phase": phase, "notice": line})

    device = torch.device("cuda", local) if cluster.gpu else torch.device("cpu")
    if cluster.gpu:
        torch.cuda.set_device(device)
    with logged, endpoint:
        LOG.info("%ss on %s, process %s", start["event"], socket.gethostname(), os.getpid())
        train(run.training_spec(chain, step), ranks, device, metrics, report, tell, activity)
