"""What this user's own account remembers of runs: the addresses that he gave, by run folder.

A run folder may come from a stranger, so nothing in it is an address. What may be asked is kept in
``$XDG_STATE_HOME/perennial/runs`` (``~/.local/state/perennial/runs``), which is the user's alone.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from data_shards.files import write_json
from data_shards.settings import InputError
from launch.config.load import locations
from monitoring.run_folder import CONFIG_FILE
from untrusted.files import read_bytes

_BYTES = 1 << 20


class Remembered(BaseModel):
    """The addresses that belong to a run folder."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    folder: str = ""
    """Its real path, for people."""
    job: str | None = None
    """The Ray job that it was sent away as."""
    address: str | None = None
    """The dashboard of that job's cluster."""
    locations: tuple[str, ...] = ()
    """URLs in its configuration."""


def remembered(folder: Path) -> Remembered:
    """What is known of a run folder; nothing where there is no home to remember in."""
    try:
        path = _file(folder)
        if path.parent.stat().st_uid != os.geteuid():
            return Remembered()
        return Remembered.model_validate_json(read_bytes(path, _BYTES))
    except (OSError, RuntimeError, ValidationError):
        return Remembered()


def remember(folder: Path, **facts: Any) -> str | None:
    """Keeps further `facts` of a run folder; returns why that was not possible, if so."""
    known = remembered(folder)
    if all(getattr(known, key) == value for key, value in facts.items()):
        return None
    try:
        changed = known.model_copy(update={"folder": str(folder.resolve()), **facts})
        path = _file(folder)
        path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_json(path, changed.model_dump())
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


def check_locations(folder: Path, configuration: Any) -> None:
    """Raises InputError where a run folder's `configuration` names a URL that the user did not."""
    known = remembered(folder).locations
    for location in locations(configuration):
        if location not in known:
            raise InputError(
                f"{folder / CONFIG_FILE} names {location}, and it was not you who started this run "
                "from this account: nothing is asked there; `perennial report` and "
                "`perennial serve` show the run without it"
            )


def _file(folder: Path) -> Path:
    """Raises RuntimeError where this user has no home."""
    given = os.environ.get("XDG_STATE_HOME", "")
    # a relative one is to be ignored, says the XDG specification
    state = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return state / "perennial" / "runs" / f"{name}.json"
