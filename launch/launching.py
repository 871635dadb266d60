"""The commands `perennial launch ...`: a run on machines elsewhere."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

launching = typer.Typer(help="Start a run on a cluster.", no_args_is_help=True)
console = Console(highlight=False)


@launching.callback()
def _group() -> None:
    """Start a run on a cluster."""


@launching.command()
def ssh(
    config: Annotated[str, typer.Argument(help="A configuration file, as the hosts find it.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    hosts: Annotated[
        Path, typer.Option(help="One host a line: NAME [address=IP] [cpus=N] [gpus=N].")
    ] = Path("hosts"),
    out: Annotated[
        str | None, typer.Option(help="Run folder, which all hosts share; default runs/CONFIG.")
    ] = None,
    directory: Annotated[
        str | None, typer.Option(help="Where perennial lies on the hosts; default: as here.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Its environment's Python there; default: as here.")
    ] = None,
    port: Annotated[int, typer.Option(help="Ray's, on the first host.")] = 6379,
    ssh_config: Annotated[
        Path | None, typer.Option(help="Passed to ssh by -F: users, ports, keys.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be executed, and where.")
    ] = False,
) -> None:
    """Run on several hosts: Ray is started on each of them, and ended with the run.

    The first is the head, where the driver runs. Ctrl-C ends the run; the same command goes on.
    """
    import os
    import sys

    from launch.ssh import Launch, read_hosts

    launch = Launch(
        read_hosts(hosts),
        directory or os.getcwd(),  # noqa: PTH109
        python or sys.executable,
        port,
        ("-F", str(ssh_config)) if ssh_config else (),
    )
    words = [config, *(overrides or []), *(["--out", out] if out else [])]
    if dry_run:
        for line in launch.commands(words):
            print(line)
        return
    if code := launch.run(words, console):
        raise typer.Exit(code)
