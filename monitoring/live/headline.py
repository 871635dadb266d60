"""What the list says of a run beside its state: the newest accuracy, and the time left."""

from pathlib import Path
from typing import Any

from monitoring.live.phases import Counted
from monitoring.records import checked
from monitoring.results import figures
from monitoring.run_folder import step_of
from monitoring.schemas import EVALUATION
from untrusted.files import read_bytes
from untrusted.json_text import parse_json

_BYTES = 1 << 22
_LEAST = 0.01
"""Share of a run that an attempt has done before the rest is guessed from it."""


def newest_accuracy(root: Path, file: Path) -> dict[str, Any] | None:
    """The first figure of an evaluation, and whose it is; None where the file is none."""
    where = step_of(file)
    try:
        found = figures(checked(parse_json(read_bytes(file, _BYTES, root)), EVALUATION))
    except (OSError, ValueError):
        return None
    if where is None or not found:
        return None
    title, value = next(iter(found.values()))
    return {"title": title, "value": value, "method": where[0], "step": where[2]}


def seconds_left(
    counted: Counted | None, begun: float | None, share: float, now: float
) -> float | None:
    """How long a run that has done `share` will take, at the pace of its newest attempt.

    None where no attempt has counted its phases, or that has done too little to tell.
    """
    if counted is None or begun is None or not counted.phases:
        return None
    gained = share - (1 - counted.left / counted.phases)
    if gained < _LEAST or now <= begun:
        return None
    return (1 - share) * (now - begun) / gained
