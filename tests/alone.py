"""Runs in this very process, without Ray: its start costs more than all of a small run's work."""

from launch.config.run import RunConfig
from launch.execution.in_process import InProcess, in_process
from launch.exits import Preempted
from launch.phases.execute import execute
from launch.terminal.console import console


def execute_alone(config: RunConfig, folder) -> None:
    """`launch.phases.execute.execute` without Ray."""
    execute(config, folder, console, in_process)


def executed_with_stops(config: RunConfig, folder, monkeypatch, unit, errors, stops):
    """Runs to the end, started again after each interruption: by an error at those calls of the
    unit of work `unit`, a module and a function's name, whose numbers are `errors`, and by a stop
    at `stops`. Returns the files that the calls were to write, and what ended each attempt."""
    module, name = unit
    written, ends, executors = [], [], []
    work, map_units = getattr(module, name), InProcess.map

    def interrupted(worker, out, *others):
        written.append(out)
        if len(written) in errors:
            raise KeyboardInterrupt
        if len(written) in stops:
            executors[-1]._stop.set()
        work(worker, out, *others)

    def map_of(self, function, calls):
        executors.append(self)
        return map_units(self, function, calls)

    monkeypatch.setattr(module, name, interrupted)
    monkeypatch.setattr(InProcess, "map", map_of)
    while not ends or ends[-1] is not None:
        try:
            execute_alone(config, folder)
            ends.append(None)
        except (KeyboardInterrupt, Preempted) as stop:
            ends.append(type(stop))
    return written, ends
