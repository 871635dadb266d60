"""What a run's ledger and its attempts say of phases, whatever their kinds."""

from dataclasses import dataclass
from typing import Any

from monitoring.live.values import finite, moment, text
from monitoring.run_folder import LABEL


@dataclass(frozen=True)
class Finished:
    """What the ledger says of a phase."""

    kind: str
    begun: float | None
    ended: float | None
    attempt: float | None

    @classmethod
    def of(cls, record: dict[str, Any], label: str) -> "Finished":
        """Lines that name no kind are of the kind that their phase's label names."""
        kind = text(record.get("kind")) or ""
        begun, ended = (moment(record.get(key)) for key in ("started", "finished"))
        known = kind if LABEL.fullmatch(kind) else label
        return cls(known, begun, ended, finite(record.get("attempt")))


@dataclass(frozen=True)
class Counted:
    """How many phases an attempt found the run to have, and how many of them still to be done."""

    attempt: float
    phases: int
    left: int
    begun: float | None = None
    """When the attempt began, in Unix seconds."""

    @classmethod
    def of(cls, event: dict[str, Any]) -> "Counted | None":
        """What an attempt's event says; None where it is of before such events did."""
        attempt, *given = (finite(event.get(key)) for key in ("attempt", "phases", "left"))
        phases, left = given
        if attempt is None or phases is None or left is None or not 0 <= left <= phases:
            return None
        return cls(attempt, int(phases), int(left), moment(event.get("time")))
