"""Runs in this very process, without Ray: its start costs more than all of a small run's work."""

from launch.config.run import RunConfig
from launch.execution.in_process import in_process
from launch.phases.execute import execute
from launch.terminal.console import console


def execute_alone(config: RunConfig, folder) -> None:
    """`launch.phases.execute.execute` without Ray."""
    execute(config, folder, console, in_process)
