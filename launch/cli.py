"""The command `perennial`: an entry point; each command is in a file of `launch.commands`."""

from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from launch.commands.analyse import analyse
from launch.commands.clusters import launching
from launch.commands.configuring import config
from launch.commands.errors import report_errors
from launch.commands.exporting import card, export
from launch.commands.models import adopt, backfill, classify, compat, embed, evaluate, inspect
from launch.commands.runs import (
    attach,
    compare,
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
from launch.commands.starting import init
from launch.machine.surroundings import prepare_environment
from launch.terminal.console import begin_in_utf_8, say

COMMANDS: dict[str, tuple[Callable[..., None] | tuple[str, typer.Typer], ...]] = {
    "Every day": (init, config, run, status, compare, report, serve),
    "Data": (("shards", shards),),
    "Look closer": (plan, logs, ("analyse", analyse), inspect, demo),
    "Models": (compat, evaluate, embed, classify, export, card, adopt, backfill),
    "Other machines": (("launch", launching), attach, stop),
}
"""In the order of ``--help``, under its headings."""


class _Grouped(TyperGroup):
    """Lists commands under the headings of `COMMANDS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [_name(command) for commands in COMMANDS.values() for command in commands]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, self.commands))
        for heading, commands in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [
                        (
                            name.ljust(width),
                            self.commands[name].get_short_help_str(formatter.width - width - 6),
                        )
                        for name in map(_name, commands)
                    ]
                )


def _name(command: Callable[..., None] | tuple[str, typer.Typer]) -> str:
    return command[0] if isinstance(command, tuple) else command.__name__


app = typer.Typer(
    cls=_Grouped,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help is text: its brackets are not markup
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"perennial {metadata.version('perennial-id')}")
        raise typer.Exit


@app.callback()
def perennial(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Train identity embeddings whose identities keep arriving."""


for commands in COMMANDS.values():
    for command in commands:
        if isinstance(command, tuple):
            app.add_typer(command[1], name=command[0])
        else:
            app.command()(command)


def main() -> None:
    """Entry point."""
    begin_in_utf_8()
    prepare_environment()
    report_errors(app)


if __name__ == "__main__":
    main()
