"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from launch.commands.completion import config_files, overrides, run_folders
from launch.config.absent import no_config
from launch.config.templates import config_file


def existing_config(path: Path | None) -> Path | None:
    """A configuration's path, once it is there. Raises InputError."""
    if path is not None and not config_file(path).exists():
        raise no_config(path)
    return path


ConfigFile = Annotated[
    Path,
    typer.Argument(
        help="A configuration file, or the name of one that comes along, such as demo.",
        callback=existing_config,
        autocompletion=config_files,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value, such as training.iterations=100.", autocompletion=overrides),
]
RunFolder = Annotated[
    Path,
    typer.Argument(help="A run folder, such as runs/demo.", autocompletion=run_folders),
]
RunFolders = Annotated[list[Path], typer.Argument(help="Run folders.", autocompletion=run_folders)]
JobAddress = Annotated[
    str | None,
    typer.Option(
        "--address", help="The dashboard of the cluster that it was sent to, from another account."
    ),
]
