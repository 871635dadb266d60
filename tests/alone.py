"""Runs in this very process, without Ray: its start costs more than all of a small run's work."""

from launch.commands.ranks import drive
from launch.config.run import RunConfig
from trainer.engine import ensure_process_group
from trainer.heads.collectives import Ranks


def execute_alone(config: RunConfig, folder) -> None:
    """`launch.phases.execute.execute` with the only rank of torchrun's way."""
    ensure_process_group()
    drive(config, folder, Ranks.default())
