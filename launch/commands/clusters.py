"""The commands `perennial launch ...`: a run on machines elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from launch.terminal.console import console, say

launching = typer.Typer(help="Start a run on a cluster.", no_args_is_help=True)


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

    from launch.clusters.ssh import Launch, read_hosts

    launch = Launch(
        hosts=read_hosts(hosts),
        directory=directory or os.getcwd(),  # noqa: PTH109
        python=python or sys.executable,
        port=port,
        ssh_options=("-F", str(ssh_config)) if ssh_config else (),
    )
    words = [config, *(overrides or []), *(["--out", out] if out else [])]
    if dry_run:
        for line in launch.commands(words):
            say(line)
        return
    if code := launch.run(words, console):
        raise typer.Exit(code)


@launching.command()
def k8s(
    config: Annotated[Path, typer.Argument(help="A configuration file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    image: Annotated[
        str, typer.Option(help="What k8s/Dockerfile was built as, with its tag.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Folder; default k8s-NAME.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the run; default CONFIG's name.")] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Training workers a pod; default 8 GPUs, or 1 CPU.")
    ] = None,
    identities: Annotated[
        int | None, typer.Option(min=1, help="Of a dataset that is not here; with --images.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Of that dataset.")] = None,
) -> None:
    """Write Kubernetes manifests of a run, with sizes from `perennial plan`."""
    from launch.clusters.kubernetes import read_manifests, render, sizes, write_manifests
    from launch.config.load import load_config
    from launch.planning.plan import plan_run
    from launch.planning.split import split_of
    from launch.planning.tables import size_text

    settings = load_config(config, overrides or [])
    planned = plan_run(settings, split_of(settings, identities, images), None)
    gpu = settings.cluster.gpu
    size = sizes(settings, planned, ranks or (min(8, planned.world) if gpu else 1))
    run = name or config.stem.replace("_", "-").lower()
    folder = out or Path(f"k8s-{run}")
    write_manifests(
        render(files=read_manifests(), config=settings, size=size, name=run, image=image), folder
    )
    console.print(
        f"{size.trainers} trainer pods of {size.ranks} ranks, {size_text(size.trainer_memory)} "
        f"each; up to {size.actors} actor pods of {size_text(size.actor_memory)}; "
        f"volume {size_text(size.volume)}; {size.grace} s to end in\n"
        f"kubectl apply -k {folder / 'overlays' / ('gpu' if gpu else 'dev')}"
    )


@launching.command()
def slurm(
    config: Annotated[Path, typer.Argument(help="A configuration file.")],
    nodes: Annotated[int, typer.Option(min=1, help="They share cluster.workers evenly.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ...")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, which all nodes share; default runs/CONFIG.")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="An option for sbatch: --partition=gpu. May be repeated."),
    ] = None,
    identities: Annotated[
        int | None, typer.Option(min=1, help="Of a dataset that is not here; with --images.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Of that dataset.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the batch script instead of submitting it.")
    ] = False,
) -> None:
    """Submit a run to Slurm; it saves before its time is up, and is queued again."""
    from launch.clusters.kubernetes import sizes
    from launch.clusters.slurm import Job, script, submit
    from launch.config.load import load_config
    from launch.planning.plan import plan_run
    from launch.planning.split import split_of

    settings = load_config(config, overrides or [])
    planned = plan_run(settings, split_of(settings, identities, images), None)
    cluster, run = settings.cluster, out or Path("runs") / config.stem
    job = Job(
        name=run.name,
        nodes=nodes,
        workers=cluster.workers,
        actors=cluster.actors or nodes,
        threads=cluster.threads,
        grace=sizes(settings, planned, 1).grace,
        run=run,
        words=[str(config.absolute()), *(overrides or [])],
        directory=Path.cwd(),
        options=sbatch or [],
    )
    text = script(job)
    if dry_run:
        say(text, end="")
        return
    number = submit(text, run)
    console.print(f"job {number}: squeue -j {number}; its output: {run}/slurm-{number}.log")
