"""Commands on runs: starting, following, stopping, comparing, planning, and configuration keys."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from data_shards.settings import InputError
from launch.commands.arguments import ConfigFile, JobAddress, Overrides, RunFolder, RunFolders
from launch.commands.completion import methods
from launch.terminal.console import console, say, say_json
from monitoring.run_folder import JOB_FILE, LOGS_FOLDER, REPORT_FILE, is_run


def _run(config: Path, overrides: list[str] | None, out: Path | None) -> None:
    from launch.config.load import load_config
    from launch.phases.execute import execute

    execute(load_config(config, overrides or []), out or Path("runs") / config.stem, console)


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/CONFIG.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Send the run to the Ray cluster with this dashboard, http://HEAD:8265."),
    ] = None,
) -> None:
    """Run a configuration, or go on with it where it was stopped."""
    if address is None:
        _run(config, overrides, out)
        return
    from launch.clusters.ray_jobs import send
    from launch.config.load import load_config

    folder = out or Path("runs") / config.stem
    send(load_config(config, overrides or []), folder, address, console)
    attach(folder, address)


def attach(folder: RunFolder, address: JobAddress = None) -> None:
    """Follow a run that was sent away by --address; Ctrl-C leaves it alone."""
    from launch.clusters.ray_jobs import follow

    try:
        code = follow(folder, console, address)
    except KeyboardInterrupt:
        console.print(
            f"\ndetached, the run goes on: perennial attach {folder}, or stop {folder}",
            soft_wrap=True,
        )
        code = 0
    raise typer.Exit(code)


def stop(folder: RunFolder, address: JobAddress = None) -> None:
    """Ask a run, here or sent away by --address, to save a checkpoint and end."""
    from launch.clusters.ray_jobs import stop as ask
    from launch.runs.lease import ask_to_end

    if (folder / JOB_FILE).exists():
        ask(folder, address)
        asked = "its job"
    else:
        asked = str(ask_to_end(folder))
    console.print(f"asked {asked} to save a checkpoint and end; the same command goes on")


def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
) -> None:
    """Run configs/demo.yaml: finetune, lwf, fkd and joint on glyphs, in minutes on two cores."""
    from launch.config.templates import template

    _run(template("demo"), overrides, out)


def compare(
    runs: RunFolders,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one row a step.")] = False,
    against: Annotated[
        str | None,
        typer.Option(
            help="A method: say what the others gain over it, too, of the same seeds.",
            autocompletion=methods,
        ),
    ] = None,
) -> None:
    """Compare methods over learning steps: mean ± standard deviation over seeds, at one split."""
    from monitoring.compatibility import summary, summary_tables
    from monitoring.gains import gain_tables, gains, told_gains
    from monitoring.records import Damage, evaluations, told
    from monitoring.results import compare as rows_of
    from monitoring.results import tables

    damage: Damage = {}
    for folder in runs:
        if not evaluations(folder, damage):
            why = next(told(damage), "run it, or see `perennial status`")
            raise InputError(f"{folder} holds no evaluation yet: {why}")
    rows, compatible = rows_of(runs), summary(runs, damage)
    gained = {} if against is None else gains(runs, against)
    if as_json:
        for row in rows:
            same = [c for c in compatible if all(c[k] == row[k] for k in ("run", "method", "step"))]
            row |= {"compatibility": same} if same else {}
            own = told_gains(gained, row)
            row |= {"minus": {"method": against, **own}} if own else {}
        say_json(rows)
        return
    for table in tables(rows):
        console.print(table)
    for table in [] if against is None else gain_tables(gained, against):
        console.print(table)
    for table in summary_tables(compatible):
        console.print(table)
    for line in told(damage):
        console.print(Text(line, "yellow"))


def report(folder: RunFolder) -> None:
    """Draw report.html anew from a run folder's files."""
    from launch.config.load import kept_config
    from monitoring.records import told
    from monitoring.report import draw

    kept_config(folder)
    damage: dict[str, str] = {}
    draw(folder, damage)
    for line in told(damage):
        console.print(Text(line, "yellow"))
    console.print(f"report: {folder / REPORT_FILE}")


def status(folder: RunFolder, address: JobAddress = None) -> None:
    """Show what a run has finished and what it does now."""
    from launch.phases.status import status_table

    if (folder / JOB_FILE).exists():
        from launch.clusters.ray_jobs import status as of_job

        console.print(of_job(folder, address), soft_wrap=True)
        if not is_run(folder):
            return
    for part in status_table(folder):
        console.print(part)


def logs(
    folder: RunFolder,
    rank: Annotated[int | None, typer.Option(help="Only this training rank's.")] = None,
    phase: Annotated[
        str | None, typer.Option(help="Only phases whose name holds this, such as step-1/train.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="90s, 10m, 2h or 1d ago, or a time like 2026-01-31T09:00.")
    ] = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="At least so grave.")
    ] = "info",
    as_json: Annotated[bool, typer.Option("--json", help="Print the JSON lines.")] = False,
) -> None:
    """Print what every process of a run logged, in the order of time."""
    from monitoring.logs import in_words, moment, read_logs

    if not (folder / LOGS_FOLDER).is_dir():
        raise InputError(
            f"{folder / LOGS_FOLDER} does not exist: give the folder of a run that began"
        )
    try:
        start = moment(since, time.time()) if since else 0.0
    except ValueError as error:
        raise InputError(f"--since {since!r} is no time: write 10m, or 2026-01-31T09:00") from error
    for line in read_logs(folder=folder, rank=rank, phase=phase, since=start, level=level):
        if as_json:
            say_json(line, indent=None)
        else:
            say(in_words(line))


def serve(
    runs: Annotated[Path, typer.Argument(help="The folder that holds run folders.")] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="Address to listen on; a token is asked for beyond localhost.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8765,
    prometheus: Annotated[
        str | None, typer.Option(help="Show the alerts of this one, such as http://127.0.0.1:9090.")
    ] = None,
    scrape: Annotated[
        list[str] | None,
        typer.Option(help="Ask metrics of these hosts, too, such as '10.0.*'; may be repeated."),
    ] = None,
) -> None:
    """Show a folder of runs on a live web page that changes nothing."""
    from launch.commands.serving import serve_runs

    serve_runs(
        folder=runs,
        host=host,
        port=port,
        prometheus=prometheus,
        scrape=tuple(scrape or ()),
        say=say,
    )


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    world: Annotated[
        int | None, typer.Option(min=1, help="Ranks; default cluster.workers. 64 nodes × 8 = 512.")
    ] = None,
    identities: Annotated[
        int | None, typer.Option(min=1, help="Of a dataset that need not exist; with --images.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Of that dataset.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="Estimate times: this (measured), a100, h100 or h200.")
    ] = None,
    actor_rate: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Images that a CPU actor embeds in a second, for times, too."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, ranks one by one.")] = False,
) -> None:
    """Work out memory, messages, disk and time of every learning step, without training."""
    from launch.config.load import load_config
    from launch.planning.efforts import actor_like
    from launch.planning.hardware import machine as machine_of
    from launch.planning.plan import plan_run
    from launch.planning.split import split_of
    from launch.planning.tables import plan_tables

    ranks = [] if world is None else [f"cluster.workers={world}"]
    settings = load_config(config, [*(overrides or []), *ranks])
    split = split_of(settings, identities, images)
    cluster = settings.cluster
    chosen = (
        machine_of(machine, cluster.worker_threads(), max(1, cluster.workers)) if machine else None
    )
    planned = plan_run(settings, split, chosen, actor_like(chosen, cluster, actor_rate))
    if as_json:
        say_json(planned.values())
        return
    for part in plan_tables(planned):
        console.print(part)
