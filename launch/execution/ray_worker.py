"""What Ray Train runs on each rank."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.settings import InputError
from data_shards.storage.remote import Count
from launch.config.run import RunConfig
from launch.execution.failures import crash_file, crash_told
from launch.execution.heartbeat import Heartbeat
from launch.execution.rank import RankJobs
from launch.runs.lease import Fence
from launch.runs.run import Run
from monitoring.metrics import Metrics
from trainer.activity import Activity
from trainer.divergence import Diverged
from trainer.heads.collectives import Ranks


@dataclass(frozen=True)
class RankSpec:
    """What every rank of a run is told when it starts."""

    config: dict[str, Any]
    folder: Path
    fence: Fence
    mailbox: Any
    """A Ray handle of the `Mailbox`."""
    board: Any
    """And of the `JobBoard`."""


def worker(given: dict[str, RankSpec]) -> None:
    """Does one job after another on this rank, until there will be no more.

    `given` holds the one `spec`. Errors that repeating cannot mend are posted too, so that the
    driver stops the run for them instead of letting Ray restart the group; a job that diverged is
    done, and there may be another. Asked to stop, a job saves a checkpoint and returns.
    """
    import ray  # the driver sets the environment that it reads when it is imported

    rank = given["spec"]
    config = RunConfig.model_validate(rank.config)
    torch.set_num_threads(config.cluster.worker_threads())
    ranks = Ranks.default()

    def post(record: dict[str, Any]) -> None:
        rank.mailbox.post.remote(record)

    def open_run(count: Count) -> Run:
        return Run.open(rank.folder, config, count, rank.fence)

    jobs = RankJobs(open_run, ranks, post, with_driver=False)
    told = crash_told(crash_file(rank.folder, ranks.rank))
    with told, Heartbeat(rank.mailbox, ranks.rank, rank.fence.lost) as heartbeat:
        done = 0
        while (posted := ray.get(rank.board.next.remote(ranks.rank, done))) is not None:
            phase, job, spec = ray.get(posted.content)
            try:
                rank.fence.check()
                metrics = Metrics()
                activity = Activity(metrics.count_doing)
                restarts = ray.get(rank.mailbox.start.remote(phase, ranks.rank))
                with heartbeat.during(phase, activity):
                    jobs.do(
                        job,
                        spec,
                        phase=phase,
                        metrics=metrics,
                        activity=activity,
                        restarts=restarts,
                    )
            except Diverged as error:
                # heard before the job counts as done, and the group goes on: others are sound
                ray.get(rank.mailbox.post.remote({"phase": phase, "diverged": str(error)}))
            except InputError as error:
                post({"phase": phase, "error": str(error)})
                raise
            done = posted.number
