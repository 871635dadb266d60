"""What a run is to do, kept beside what it has done: who looks at it needs neither its dataset nor
the code of its methods."""

from collections.abc import Callable, Sequence
from pathlib import Path

from monitoring.records import Damage, read_value
from monitoring.run_folder import PLANNED_FILE
from monitoring.schemas import PLANNED, PlannedPhase


def kept(folder: Path, damage: Damage | None = None) -> list[PlannedPhase] | None:
    """The phases of the run in `folder`, in order, as its newest attempt planned them.

    None where it was made by a version that did not write them down, or the file is damaged.
    """
    found: list[PlannedPhase] | None = read_value(folder / PLANNED_FILE, PLANNED, damage)
    return found


def pending(
    every: Sequence[PlannedPhase], recorded: Callable[[str, str], bool], folder: Path
) -> list[str]:
    """The names of a run's phases that are still to do, in their order.

    `recorded` says whether the ledger has a phase of that name and fingerprint. What only prepares
    phases that are done is not needed.
    """
    finished = {
        p["phase"]
        for p in every
        if recorded(p["phase"], p["fingerprint"])
        and all((folder / path).exists() for path in p["outputs"])
    }
    todo: list[str] = []
    read: set[str] = set()
    for phase in reversed(every):  # a phase comes after those whose outputs it reads
        missed = phase["phase"] in read or not phase["only_prepares"]
        if phase["phase"] not in finished and missed:
            todo.append(phase["phase"])
            read.update(phase["inputs"])
    return todo[::-1]
