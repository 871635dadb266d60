"""The command `perennial`: an entry point; each command is in a file of `launch.commands`."""

from collections.abc import Callable

import typer

from launch.commands.analyse import analyse
from launch.commands.clusters import launching
from launch.commands.errors import report_errors
from launch.commands.exporting import card, export
from launch.commands.models import adopt, backfill, classify, compat, embed, evaluate, inspect
from launch.commands.runs import (
    attach,
    compare,
    config,
    demo,
    logs,
    plan,
    report,
    run,
    serve,
    status,
    stop,
)
from launch.commands.shards import shards
from launch.machine.surroundings import prepare_environment
from launch.terminal.console import begin_in_utf_8

app = typer.Typer(
    help="Train identity embeddings whose identities keep arriving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help is text: its brackets are not markup
)
app.add_typer(shards, name="shards")
app.add_typer(launching, name="launch")
app.add_typer(analyse, name="analyse")
COMMANDS: tuple[Callable[..., None], ...] = (
    *(adopt, embed, backfill, evaluate, classify, export, card),
    *(run, attach, stop, demo, compare, report, status, logs, serve),
    *(inspect, compat, plan, config),
)
"""In the order of ``--help``."""
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Entry point."""
    begin_in_utf_8()
    prepare_environment()
    report_errors(app)


if __name__ == "__main__":
    main()
