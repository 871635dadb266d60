"""What Ray Train runs on each rank of a training phase."""

import os
from typing import Any

import torch

from data_shards.settings import InputError
from launch.config import RunConfig
from launch.folder import Chain, Run
from monitoring.exporter import serve_metrics
from monitoring.metrics import Metrics
from trainer.engine import ensure_process_group
from trainer.heads.collectives import Ranks
from trainer.loop import train


def worker(spec: dict[str, Any]) -> None:
    """Trains one learning step on this rank.

    Errors that repeating cannot mend are posted too, so that the driver stops the run for them
    instead of letting Ray restart the group.
    """
    config = RunConfig.model_validate(spec["config"])
    torch.set_num_threads(config.cluster.worker_threads())
    ensure_process_group()
    ranks = Ranks.default()
    mailbox, phase = spec["mailbox"], spec["phase"]
    try:
        run = Run.open(spec["folder"], config)
        chain, step = Chain(spec["method"], spec["seed"]), spec["step"]
        metrics = Metrics()
        metrics.step.set(step)
        metrics.phase_started.set_to_current_time()
        serve_metrics(
            metrics.registry,
            run.folder / "targets" / f"trainer-{ranks.rank}.json",
            {"job": "trainer", "rank": str(ranks.rank)},
            **config.cluster.metrics_endpoint(ranks.rank),
        )

        def report(record: dict[str, Any]) -> None:
            if ranks.rank == 0:
                mailbox.post.remote({"phase": phase, **record})

        def tell(line: str) -> None:
            mailbox.post.remote({"phase": phase, "notice": line})

        device = torch.device("cpu")
        if config.cluster.gpu:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        train(run.task(chain, step), ranks, device, metrics, report, tell)
    except (InputError, FloatingPointError) as error:
        mailbox.post.remote({"phase": phase, "error": str(error)})
        raise
