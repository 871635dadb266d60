"""Goodput: where a run's time went, what its restarts cost, and what each kind of phase took.

Which use a phase's time was put to follows from where its work was done, whatever its kind: on the
ranks, records of training say it; on the CPU actors, all of it is theirs; the driver's own is among
``other``.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from monitoring.records import Damage, events, ledger, metrics

Record = dict[str, Any]

USES = {
    "training": "useful iterations",
    "input": "waiting for input within them",
    "repeated": "iterations done again",
    "cpu": "phases on the CPU actors",
    "restarting": "restarting",
    "other": "starting, saving, all else",
}


@dataclass(frozen=True)
class Allocated:
    """What the finished phases of a kind had, used or not. Hours."""

    phases: int
    wall: float
    cpu: float
    """Cores × hours."""
    gpu: float


@dataclass(frozen=True)
class Goodput:
    """Where the time of a run's attempts went. Seconds."""

    seconds: dict[str, float]
    """By use, see `USES`."""
    stopped: float
    """Between attempts; not in `seconds`."""
    attempts: int
    worker_restarts: int
    allocated: dict[str, Allocated]
    """By kind of phase."""

    @property
    def total(self) -> float:
        """Seconds that an attempt was there."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """Share of that spent in useful iterations."""
        return self.seconds["training"] / self.total if self.total else 0.0


_MEASURED = {"time", "seconds", "iterations", "data_wait_share"}


def goodput(folder: Path, damage: Damage | None = None) -> Goodput | None:
    """Of a run folder; none before anything was trained or finished."""
    return account(ledger(folder, damage), metrics(folder, damage), events(folder, damage))


def account(
    ledger: Sequence[Record], metrics: Sequence[Record], events: Sequence[Record]
) -> Goodput | None:
    """Accounts for the time between the first sign of life and the last.

    An attempt ends with the last sign before the next one begins. Signs are finished phases
    (`ledger`), records of training (`metrics`, but for those that do not say how many
    ``iterations`` they took how many ``seconds``) and `events`.
    """
    training = [record for record in metrics if record.keys() >= _MEASURED]
    trained = {record["phase"] for record in metrics}
    ledger = [{**record, "where": _where(record, trained)} for record in ledger]
    signs = sorted([*(r["finished"] for r in ledger), *(r["time"] for r in [*training, *events])])
    if not signs:
        return None
    begun = [e["time"] for e in events if e["event"] == "attempt"]
    first = min([signs[0], *_starts(ledger, training)])
    begun = sorted({first, *begun[1:]} if begun else {first})
    ends = [_last_before(signs, later) for later in begun[1:]] + [signs[-1]]
    stopped = sum(later - end for later, end in zip(begun[1:], ends, strict=False))
    restarted = [e["time"] for e in events if e["event"] == "restart" and e.get("rank") == 0]

    useful, repeated, waiting = 0.0, 0.0, 0.0
    for share, record in useful_shares(training):
        useful += share * record["seconds"] * (1 - record["data_wait_share"])
        waiting += share * record["seconds"] * record["data_wait_share"]
        repeated += (1 - share) * record["seconds"]
    seconds = {
        "training": useful,
        "input": waiting,
        "repeated": repeated,
        "cpu": sum(r["finished"] - r["started"] for r in ledger if r["where"] == "actors"),
        "restarting": _restarting(begun[1:], restarted, signs, _starts(ledger, training)),
    }
    whole = sum(end - start for start, end in zip(begun, ends, strict=True))
    seconds["other"] = max(0.0, whole - sum(seconds.values()))
    return Goodput(
        seconds=seconds,
        stopped=stopped,
        attempts=len(begun),
        worker_restarts=len(restarted),
        allocated=_allocated(ledger),
    )


def useful_shares(training: Sequence[Record]) -> Iterable[tuple[float, Record]]:
    """Each record, and the share of its iterations that no later record of its phase repeats."""
    again: dict[str, int] = {}
    for record in reversed(training):
        last, count = record["iteration"], record["iterations"]
        repeated_from = again.get(record["phase"], last)
        kept = min(last, repeated_from) - (last - count)
        yield min(1.0, max(0.0, kept / count)), record
        again[record["phase"]] = min(repeated_from, last - count)


def _where(record: Record, trained: Set[str]) -> str:
    """Where a phase of the ledger was done; `trained` are those with records of training.

    Lines of before do not say it: GPUs were set aside for ranks alone, and records of training may
    be too many for all to be read.
    """
    done = record.get("same_as", record["phase"]) in trained or record.get("gpus")
    return str(record.get("where", "ranks" if done else "actors"))


def _starts(ledger: Sequence[Record], training: Sequence[Record]) -> list[float]:
    """When each piece of work began, ascending."""
    return sorted(
        [
            *(r["started"] for r in ledger if r["where"] != "ranks"),
            *(r["time"] - r["seconds"] for r in training),
        ]
    )


def _last_before(times: Sequence[float], moment: float) -> float:
    """Of ascending `times`; `moment` itself where none is before it."""
    place = bisect_left(times, moment)
    return times[place - 1] if place else moment


def _first_from(times: Sequence[float], moment: float, otherwise: float) -> float:
    place = bisect_left(times, moment)
    return times[place] if place < len(times) else otherwise


def _restarting(
    attempts: Sequence[float],
    restarted: Sequence[float],
    signs: Sequence[float],
    starts: Sequence[float],
) -> float:
    """Seconds from the beginning of each further attempt, and from the last sign before workers
    were started again, to the next piece of work."""
    stretches = [(moment, moment) for moment in attempts]
    stretches += [(_last_before(signs, moment), moment) for moment in restarted]
    ends = [(begin, _first_from(starts, moment, signs[-1])) for begin, moment in stretches]
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(ends):
        if joined and begin < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return sum(max(0.0, end - begin) for begin, end in joined)


def _allocated(ledger: Sequence[Record]) -> dict[str, Allocated]:
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in ledger:
        if "same_as" not in record:
            kinds[record["kind"]].append(record)
    found = {}
    for kind, records in kinds.items():
        hours = [(r["finished"] - r["started"]) / 3600 for r in records]
        cpu, gpu = (
            sum(h * r.get(what, 0) for h, r in zip(hours, records, strict=True))
            for what in ("cpus", "gpus")
        )
        found[kind] = Allocated(len(records), sum(hours), cpu, gpu)
    return found


def goodput_tables(found: Goodput) -> Iterator[Any]:
    """The same for a terminal."""
    yield summary_line(found)
    table = Table(title="time of attempts", title_justify="left")
    for head in ("use", "hours", "share"):
        table.add_column(head, justify="left" if head == "use" else "right")
    for use, seconds in found.seconds.items():
        table.add_row(USES[use], f"{seconds / 3600:.2f}", f"{seconds / (found.total or 1):.1%}")
    yield table
    table = Table(title="allocated to finished phases, hours", title_justify="left")
    for head in ("kind", "phases", "wall", "CPU cores", "GPUs"):
        table.add_column(head, justify="left" if head == "kind" else "right")
    for kind, of in found.allocated.items():
        hours = (f"{value:.2f}" for value in (of.wall, of.cpu, of.gpu))
        table.add_row(kind, str(of.phases), *hours)
    yield table


def summary_line(found: Goodput) -> str:
    """Goodput and restarts in a line."""
    lost = found.seconds["repeated"] + found.seconds["restarting"]
    restarts = "no restarts"
    if found.attempts > 1 or found.worker_restarts:
        restarts = (
            f"{found.attempts - 1} restarts of the run and {found.worker_restarts} of its workers "
            f"cost {lost / 60:.1f} min, with it stopped for {found.stopped / 60:.1f} min more"
        )
    return f"goodput {found.share:.1%} of {found.total / 3600:.2f} h; {restarts}"
