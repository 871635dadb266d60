"""The phases of a run: in which order, and which are still to do."""

from typing import Any

from launch.phases.kind import Kind, Phase, Step
from launch.phases.registry import KINDS
from launch.runs.ledger import Ledger
from launch.runs.run import Run


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
    """Those of a run's phases that are still to do, in their order.

    What only prepares phases that are done is not needed.
    """
    finished = {p.name for p in every if ledger.has(p.name, p.fingerprint) and p.output.complete}
    todo: list[Phase] = []
    read: set[str] = set()
    for phase in reversed(every):  # a phase comes after those whose outputs it reads
        missed = phase.name in read or not phase.kind.only_prepares
        if phase.name not in finished and missed:
            todo.append(phase)
            read |= {given.name for given in phase.inputs}
    return todo[::-1]
