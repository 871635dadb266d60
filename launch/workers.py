"""What Ray Train runs on each rank of a training phase."""

import os
from typing import Any

import torch

from data_shards.settings import InputError
from launch.config import RunConfig
from launch.folder import Chain, Run
from launch.heartbeat import Heartbeat
from launch.lease import Fence
from monitoring.exporter import serving
from monitoring.metrics import Metrics
from trainer.engine import ensure_process_group
from trainer.heads.collectives import Ranks
from trainer.loop import train
from trainer.pulse import Pulse


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
        metrics.step.set(step)
        metrics.phase_started.set_to_current_time()
        restarts = ray.get(mailbox.start.remote(phase, ranks.rank))
        metrics.restarts.inc(restarts)
        start = {"event": "restart" if restarts else "start", "rank": ranks.rank}
        if restarts and ranks.rank == 0:
            start["message"] = f"{phase}: the workers were started again ({restarts})"
        mailbox.post.remote({"phase": phase, "pid": os.getpid(), **start})
        endpoint = serving(
            metrics.registry,
            run.folder / "targets" / f"trainer-{ranks.rank}.json",
            {"job": "trainer", "rank": str(ranks.rank)},
            **config.cluster.metrics_endpoint(ranks.rank),
        )

        def report(record: dict[str, Any]) -> None:
            if ranks.rank == 0:
                mailbox.post.remote({"phase": phase, "restarts": restarts, **record})

        def tell(line: str) -> None:
            mailbox.post.remote({"phase": phase, "notice": line})

        device = torch.device("cpu")
        if config.cluster.gpu:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        pulse = Pulse(metrics.count_doing)
        with endpoint, Heartbeat(mailbox, phase, ranks.rank, pulse, fence.lost):
            train(run.task(chain, step), ranks, device, metrics, report, tell, pulse)
    except InputError as error:
        mailbox.post.remote({"phase": phase, "error": str(error)})
        raise
