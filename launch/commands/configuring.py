"""The command `perennial config`: which keys there are, and what a file makes of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from launch.commands.arguments import Overrides, existing_config
from launch.commands.completion import config_files
from launch.config.keys import FIRST, Key, json_text, keys, kinds_of_methods, read_schema
from launch.terminal.console import console, say


def config(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Print this file's configuration, resolved.",
            callback=existing_config,
            autocompletion=config_files,
        ),
    ] = None,
    overrides: Overrides = None,
    every: Annotated[bool, typer.Option("--all", help="Print every key.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print a JSON schema, for editors.")
    ] = False,
) -> None:
    """Print the configuration keys that a first run needs, all of them, or a resolved file."""
    if file is not None:
        from launch.config.load import load_config
        from untrusted.yaml_text import dump_yaml

        values = load_config(file, overrides or []).model_dump(mode="json")
        say(dump_yaml(values), end="")
        return
    read = read_schema()
    if schema:
        say(json_text(read), end="")
        return
    listed = list(keys(read))
    if every:
        console.print(_table("configuration keys", listed))
        return
    by_name = {key.name: key for key in listed}
    console.print(_table("what a first configuration sets", (by_name[name] for name in FIRST)))
    table = Table("kind", "what it does", title="methods: {NAME: {kind: KIND}, ...}")
    table.title_justify = "left"
    for kind, settings in kinds_of_methods(read).items():
        table.add_row(kind, settings["description"])
    console.print(table)
    console.print(
        f"`perennial config --all` prints all {len(listed):,} keys, `perennial init` writes a "
        "configuration for your images."
    )


def _table(title: str, listed: Iterable[Key]) -> Table:
    table = Table("key", "default", "meaning", title=title, title_justify="left")
    for key in listed:
        table.add_row(*key)
    return table
