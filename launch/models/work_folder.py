"""Work folders from which a command resumes: locked by one process, and bound to one plan."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_shards.files import write_json
from data_shards.settings import InputError
from untrusted.files import no_link, read_bytes
from untrusted.json_text import parse_json


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes of this machine. Raises InputError."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8", opener=no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{folder} is in use by another process: wait for it") from error
        yield


def check_same_plan(path: Path, plan: dict[str, Any], remedy: str) -> None:
    """Writes a plan, or checks that the plan begun here is the same. Raises InputError."""
    if not path.exists():
        write_json(path, plan)
        return
    try:
        begun = parse_json(read_bytes(path, _PLAN_BYTES))
        if not isinstance(begun, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {remedy}") from error
    for key, value in plan.items():
        if begun.get(key) != value:
            raise InputError(
                f"what was begun in {path.parent} has {key} {begun.get(key)}, not {value}: {remedy}"
            )


_PLAN_BYTES = 1 << 20
