"""The phases of a run: in which order, and which are still to do."""

from typing import Any

from launch.phases.kind import Kind, Phase, Step
from launch.phases.registry import KINDS
from launch.runs.ledger import Ledger
from launch.runs.run import Run
from monitoring import planned


def phases(run: Run, kinds: tuple[Kind[Any], ...] = KINDS) -> list[Phase]:
    """Every phase of the run in order; a paragon's come before those that are compared with it."""
    compared, seeds = run.config.evaluation.compatibility, run.config.seeds
    chains = run.chains()
    if compared is not None:
        chains.sort(key=lambda c: (seeds.index(c.seed), c.method != compared.paragon))
    first = Step(run, chains[0], 0, kinds)
    steps = range(run.config.learning_steps)
    return [p for chain in chains for number in steps for p in first.at(number, chain).phases]


def pending(every: list[Phase], ledger: Ledger) -> list[Phase]:
    """Those of a run's phases that are still to do, in their order; see `monitoring.planned`."""
    if not every:
        return []
    folder = every[0].at.run.folder
    todo = {*planned.pending([phase.planned for phase in every], ledger.has, folder)}
    return [phase for phase in every if phase.name in todo]
