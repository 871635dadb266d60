"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path,
    typer.Argument(help="A configuration file, or the name of one that comes along, such as demo."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as training.iterations=100.")
]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, such as runs/demo.")]
JobAddress = Annotated[
    str | None,
    typer.Option(
        "--address", help="The dashboard of the cluster that it was sent to, from another account."
    ),
]
