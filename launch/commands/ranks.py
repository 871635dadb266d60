"""A run on the ranks that torchrun starts; rank 0 drives it."""

import os
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import torch.distributed as dist
import typer

from data_shards.settings import InputError
from launch.commands.arguments import ConfigFile, Overrides
from launch.config.load import load_config
from launch.config.run import RunConfig
from launch.execution.ranks_watch import watching
from launch.execution.torchrun import END, Rank, TorchrunExecutor, join
from launch.exits import sigterm
from launch.phases.execute import execute
from launch.runs.run import Run
from launch.terminal.console import console
from monitoring.progress import RunProgress
from trainer.heads.collectives import Ranks


def drive(config: RunConfig, folder: Path, word: Ranks) -> None:
    """Drives the run on rank 0. Raises what `execute` does."""
    executors: list[TorchrunExecutor] = []

    def opened(run: Run, progress: RunProgress, stop: threading.Event) -> TorchrunExecutor:
        executors.append(TorchrunExecutor(word, run, progress, stop))
        return executors[-1]

    try:
        execute(config, folder, console, lambda _: nullcontext(opened))
    finally:
        # not amid an order: the others are then in another collective, which gloo would pair with
        # this one; the process ends, and torchrun ends the rest
        if not any(one.amid for one in executors):
            word.broadcast_object(END)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def ranks(
    config: ConfigFile,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    overrides: Overrides = None,
) -> None:
    """Run a configuration on the ranks that torchrun starts; cluster.workers is their number."""
    if "WORLD_SIZE" not in os.environ:
        raise InputError("start this by torchrun: torchrun --nproc-per-node 2 -m launch.ranks ...")
    world = f"cluster.workers={os.environ['WORLD_SIZE']}"
    settings = load_config(config, [*(overrides or []), world])
    word = join(settings.cluster)
    with watching(word.rank, word.world, settings.cluster.silent_seconds):
        if word.rank == 0:
            drive(settings, out, word)
        else:
            with sigterm() as stop:
                Rank(settings, out, word, stop).follow()
    dist.destroy_process_group()
