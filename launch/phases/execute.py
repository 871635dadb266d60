"""Runs or resumes a configuration, from shards to report."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from rich.console import Console

from data_shards.files import write_atomically, write_json
from data_shards.settings import InputError
from data_shards.splits.benchmark_words import in_words
from data_shards.writing.destination import destination_at
from launch.config.cluster import ClusterSettings
from launch.config.load import differences, kept_config, locations
from launch.config.run import RunConfig
from launch.execution.executor import Executors, OpenExecutor
from launch.execution.ray_cluster import check_gpus
from launch.execution.ray_executor import on_ray
from launch.exits import Preempted, Withheld, sigterm
from launch.phases.adopt import check_given
from launch.phases.compatibility import trials_of
from launch.phases.driver import Driver
from launch.phases.kind import Phase
from launch.phases.planning import pending, phases
from launch.phases.publishing import gated, update_published
from launch.runs.lease import Fence, holding
from launch.runs.ledger import Ledger
from launch.runs.places import check_networks, check_places
from launch.runs.records import append
from launch.runs.remembered import remember
from launch.runs.run import Run, check_memory, check_steps
from launch.runs.single_classes import untaught
from launch.terminal.datasets import build_glyphs, verify_dataset
from monitoring.compatibility import summary, summary_tables
from monitoring.logs import logging_to
from monitoring.progress import RunProgress
from monitoring.report import draw
from monitoring.results import compare, tables
from monitoring.run_folder import CONFIG_FILE, EVENTS_FILE, LEDGER_FILE, PLANNED_FILE, REPORT_FILE
from monitoring.run_metrics import RunMetrics, monitored
from trainer.processor import fallback, multiplies_bf16
from untrusted.yaml_text import dump_yaml


def _keep_configuration(config: RunConfig, folder: Path) -> None:
    """Writes run.yaml, or checks that the folder's run was configured alike."""
    path = folder / CONFIG_FILE
    if path.exists():
        changed = differences(kept_config(folder).deciding(), config.deciding())
        if changed:
            raise InputError(
                f"{folder} was made by another configuration, which differs in "
                f"{'; '.join(changed[:3])}: use another --out"
            )
    text = dump_yaml(config.model_dump(mode="json"))
    write_atomically(path, text.encode())


def execute(
    config: RunConfig, folder: Path, console: Console, executors: Executors = on_ray
) -> None:
    """Runs `config` in `folder`, going on where an earlier attempt was stopped.

    Raises InputError for anything that the user can mend, at the end for chains that diverged;
    Preempted after SIGTERM, Withheld at the end where the gate kept a model from being published.
    What is finished stays.
    """
    if config.cluster.address is None and executors is on_ray:
        check_gpus(config.cluster, max(1, config.cluster.workers))
    if config.glyphs is not None and not config.dataset_is_there():
        build_glyphs(config.glyphs, destination_at(config.dataset), console)
    tell = partial(_tell, console)
    with holding(folder, config.cluster.lease_seconds, tell) as attempt:
        run = _opened(config, folder, attempt.fence)
        ledger, diverged = Ledger.open(folder / LEDGER_FILE), []
        every = phases(run)
        todo = pending(every, ledger)
        write_json(folder / PLANNED_FILE, [phase.planned for phase in every])
        if todo:
            counts = {"phases": len(every), "left": len(todo)}
            append(folder, EVENTS_FILE, {**attempt.event(), **counts})
            _announce(run, every, todo, console)
            diverged = _work(
                run=run,
                every=every,
                todo=todo,
                ledger=ledger,
                console=console,
                executors=executors,
            )
        else:
            console.print(f"all {len(every)} phases of {folder} are done")
        withheld = update_published(run, every, ledger) if gated(run) else []
        run.fence.check()
        draw(folder)
    for table in tables(compare([folder])):
        console.print(table)
    for table in summary_tables(summary([folder])):
        console.print(table)
    console.print(f"report: {folder / REPORT_FILE}")
    if diverged:
        raise InputError(f"all is done but what needs this: {'; '.join(diverged)}")
    if withheld:
        raise Withheld(withheld)


def _tell(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _opened(config: RunConfig, folder: Path, fence: Fence) -> Run:
    """The run, with its configuration in its folder, once all is well. Raises InputError."""
    run = Run.open(folder, config, fence=fence)
    samples = [len(own) for own in run.benchmark.steps]
    check_steps(run.benchmark.row_ends, samples, config.cluster.workers, bool(run.given))
    check_memory(run)
    check_given(run)
    check_networks(run)
    check_places(run)
    if config.evaluation.compatibility is not None:
        trials_of(run)
    _keep_configuration(run.config, folder)
    remember(folder, locations=tuple(locations(run.config.model_dump(mode="json"))))
    return run


def _announce(run: Run, every: list[Phase], todo: list[Phase], console: Console) -> None:
    """Tells what is learned and how much is left, before any of it; verifies the dataset."""
    config, benchmark, tell = run.config, run.benchmark, partial(_tell, console)
    asking = any(phase.kind.runs_teacher for phase in todo)
    if asking and config.teacher.precision == "bf16" and not multiplies_bf16():
        line = fallback("teacher.precision")  # actors elsewhere log it for their hosts
        append(run.folder, EVENTS_FILE, {"event": "notice", "message": line})
        tell(line)
    verify_dataset(run.dataset, console)
    console.print(f"{len(every) - len(todo)} of {len(every)} phases of {run.folder} are done")
    known = benchmark.row_ends[0] if config.continues is not None else 0
    if known:
        tell(f"{known:,} identities are known from {config.continues}")
    for line in in_words(run.dataset, config.benchmark, benchmark, known):
        tell(line)
    for line in untaught(config.methods, benchmark.row_ends, bool(run.given)):
        tell(line)


def _starting(
    executors: Executors, cluster: ClusterSettings, progress: RunProgress
) -> AbstractContextManager[OpenExecutor]:
    """What `executors` makes, told while it is waited for."""
    if executors is on_ray:
        progress.doing(f"joining Ray at {cluster.address}" if cluster.address else "starting Ray")
    return executors(cluster)


def _work(
    run: Run,
    every: list[Phase],
    todo: list[Phase],
    ledger: Ledger,
    console: Console,
    executors: Executors,
) -> list[str]:
    """Walks the phases to do, heard by metrics, logs and a progress line; returns what diverged."""
    cluster, folder = run.config.cluster, run.folder
    iterations = [sum(phase.iterations for phase in some) for some in (every, todo)]
    metrics = RunMetrics(folder, len(every), len(every) - len(todo))
    with (
        monitored(metrics, **cluster.driver_endpoint(), superseded=run.fence.lost),
        RunProgress(
            console,
            metrics,
            phases=(len(every) - len(todo), len(every)),
            iterations=(iterations[0] - iterations[1], iterations[0]),
        ) as progress,
        _starting(executors, cluster, progress) as opened,
        sigterm() as stop,  # after Ray, which has a handler of its own
        logging_to(
            folder=folder,
            name="driver",
            constant={"run": folder.name, "job": "driver"},
            context=lambda: progress.context,
            expected=(KeyboardInterrupt, Preempted),
        ),
    ):
        executor = opened(run, progress, stop)
        return Driver(
            run=run,
            every=every,
            ledger=ledger,
            executor=executor,
            progress=progress,
            stop=stop,
        ).walk(todo)
