"""What Ray Train runs on each rank."""

from contextlib import nullcontext
from typing import Any

import torch

from data_shards.settings import InputError
from launch.config.run import RunConfig
from launch.execution.failures import crash_file, crash_told
from launch.execution.heartbeat import Heartbeat
from launch.execution.rank import Surroundings, do_job
from launch.runs.lease import Fence
from launch.runs.run import Run
from monitoring.metrics import Metrics
from trainer.activity import Activity
from trainer.engine import ensure_process_group
from trainer.heads.collectives import Ranks


def worker(spec: dict[str, Any]) -> None:
    """Does one phase's job on this rank.

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
        restarts = ray.get(mailbox.start.remote(phase, ranks.rank))
        activity = Activity(metrics.count_doing)

        def post(record: dict[str, Any]) -> None:
            mailbox.post.remote(record)

        def open_run(metrics: Metrics) -> Run:
            return Run.open(spec["folder"], config, metrics.count_cache, fence)

        alone = config.cluster.workers == 0
        told = nullcontext() if alone else crash_told(crash_file(spec["folder"], ranks.rank))
        where = Surroundings(phase, ranks, post, alone, restarts)
        with told, Heartbeat(mailbox, phase, ranks.rank, activity, fence.lost):
            do_job(spec["job"], spec["spec"], open_run, where, metrics, activity)
    except InputError as error:
        mailbox.post.remote({"phase": phase, "error": str(error)})
        raise
