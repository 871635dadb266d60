"""Reading what a run wrote into its folder, where any of it may be damaged or a stranger's.

What has the wrong shape is left out and counted, so that the rest can be shown: readers put into
a `Damage` what people should be told.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

from monitoring.run_folder import (
    COMPARISONS_FILE,
    EVALUATION_FILE,
    EVENTS_FILE,
    LEDGER_FILE,
    METRICS_FILE,
    files_of_steps,
    step_of,
)
from monitoring.schemas import (
    COMPARISONS,
    EVALUATION,
    EVENT,
    EXAMPLES,
    LEDGER,
    METRICS_LINE,
    Phase,
    phase_of,
)
from untrusted.errors import InputError
from untrusted.files import open_regular, read_bytes
from untrusted.json_text import parse_json
from untrusted.text import printable

Record = dict[str, Any]
Damage = dict[str, str]
"""By file, one sentence on what of it is left out."""
MOST_STEPS_FILES = 20_000
_LINE, _FILE, _BAD_LINES = 1 << 20, 1 << 27, 10_000
_VALUE_BYTES = 1 << 26


def ledger(folder: Path, damage: Damage | None = None) -> list[Record]:
    """The finished phases, each with its method, seed, step and kind.

    Where a line names no kind, its phase's label does.
    """
    found = read_lines(folder / LEDGER_FILE, LEDGER, damage)
    for record in found:
        names = ("method", "seed", "step", "kind")
        named = zip(names, phase_of(record["phase"]) or (), strict=True)
        record.update({**dict(named), **record})
    return found


def metrics(folder: Path, damage: Damage | None = None) -> list[Record]:
    """The records of training."""
    return read_lines(folder / METRICS_FILE, METRICS_LINE, damage)


def events(folder: Path, damage: Damage | None = None) -> list[Record]:
    """What happened to the run."""
    return read_lines(folder / EVENTS_FILE, EVENT, damage)


def evaluations(folder: Path, damage: Damage | None = None) -> list[Record]:
    """Every evaluation, with its method, seed and step."""
    return list(_of_steps(folder, EVALUATION_FILE, EVALUATION, damage))


def comparisons(folder: Path, damage: Damage | None = None) -> list[Record]:
    """Every comparison, with its method, seed, step and ``against``, a step."""
    return [
        {**one, **{key: file[key] for key in ("method", "seed", "step")}, "against": one["step"]}
        for file in _of_steps(folder, COMPARISONS_FILE, COMPARISONS, damage)
        for one in file["against"]
    ]


def examples(path: Path, damage: Damage, folder: Path) -> list[Record]:
    """The searches of a file of pictures in a run `folder`; none where it is damaged."""
    found: list[Record] | None = read_value(
        path=path, kind=EXAMPLES, damage=damage, limit=4 * _VALUE_BYTES, within=folder
    )
    return found or []


def comparison(path: Path) -> Record:
    """A step's ``compatibility.json``, on which more depends. Raises InputError."""
    return _needed(path, COMPARISONS)


def evaluation(path: Path) -> Record:
    """A step's ``evaluation.json``, on which more depends. Raises InputError."""
    return _needed(path, EVALUATION)


def _needed(path: Path, kind: TypeAdapter[Any]) -> Record:
    damage: Damage = {}
    found: Record | None = read_value(path, kind, damage)
    if found is None:
        why = damage.get(path.name, "it is missing")
        raise InputError(
            f"{path} cannot be used ({why}): restore it, or move it away, and `perennial run` "
            "makes it anew"
        )
    return found


def step_files(folder: Path, name: str, damage: Damage | None = None) -> list[tuple[Record, Path]]:
    """The files called `name` of all learning steps, each with its method, seed and step, in the
    order of these.

    Raises InputError where there are more than any run has.
    """
    files = [*islice(files_of_steps(folder, name), MOST_STEPS_FILES + 1)]
    if len(files) > MOST_STEPS_FILES:
        raise InputError(
            f"{folder} holds more than {MOST_STEPS_FILES:,} files {name}: no run has so many "
            "learning steps"
        )
    found = []
    for file in sorted(files):
        if (where := step_of(file)) is None:
            _note(damage, file, folder, "its folders are named as no run names them")
        else:
            found.append((dict(zip(("method", "seed", "step"), where, strict=True)), file))
    return sorted(found, key=lambda one: tuple(one[0].values()))  # by name step 10 is before 2


def _of_steps(
    folder: Path, name: str, kind: TypeAdapter[Any], damage: Damage | None
) -> Iterator[Record]:
    for where, file in step_files(folder, name, damage):
        if (found := read_value(file, kind, damage, within=folder)) is not None:
            yield {**found, **where}


def _note(damage: Damage | None, file: Path, folder: Path, why: str) -> None:
    if damage is not None:
        name = str(file.relative_to(folder)) if file.is_relative_to(folder) else file.name
        damage[printable(name)[:300]] = printable(why)


def read_value(
    path: Path,
    kind: TypeAdapter[Any],
    damage: Damage | None = None,
    limit: int = _VALUE_BYTES,
    within: Path | None = None,
) -> Any:
    """The JSON value of a file; None where it is missing or has not the shape of its `kind`."""
    folder = within or path.parent
    try:
        return checked(parse_json(read_bytes(path, limit)), kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _note(damage, path, folder, reason(error))
        return None


def checked(value: Any, kind: TypeAdapter[Any]) -> Any:
    """`value`, of the shape of its `kind`. Raises ValueError."""
    try:
        return kind.validate_python(value)
    except (RecursionError, OverflowError) as error:
        raise ValueError("it is nested too deep or too large") from error


def reason(error: Exception) -> str:
    """Why something cannot be read, in a few words."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        return f"{where}: {first['msg']}" if where else first["msg"]
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def read_jsonl(path: Path) -> list[Record]:
    """The whole lines of a JSON lines file that hold an object; none where there is no file."""
    return read_lines(path, _ANY)


def read_lines(path: Path, kind: TypeAdapter[Any], damage: Damage | None = None) -> list[Record]:
    """The whole lines of a JSON lines file of the shape of their `kind`; of 128 MiB at its end.

    A last line without its end, which a crash left, says nothing. Raises InputError where more
    than ten thousand lines are of another shape: then it is no file of a run.
    """
    found: list[Record] = []
    bad, cut = 0, False
    try:
        with open_regular(path) as file:
            cut = _at_end(file)
            for line in whole_lines(file):
                try:
                    found.append(checked(parse_json(line or b""), kind))
                except ValueError:
                    bad += bool(line is None or line.strip())
                if bad > _BAD_LINES:
                    raise InputError(
                        f"{path} is no record of a run: more than {_BAD_LINES:,} of its lines are "
                        "damaged"
                    )
    except FileNotFoundError:
        return []
    except OSError as error:
        _note(damage, path, path.parent, reason(error))
    if bad or cut:
        lines = f"{bad:,} line{'s are' if bad > 1 else ' is'} damaged and left out"
        older = f"its older part is left out: it is longer than {_FILE >> 20} MiB"
        _note(damage, path, path.parent, "; ".join([lines] * bool(bad) + [older] * cut))
    return found


def _at_end(file: BinaryIO) -> bool:
    """Goes to the first line of what is read of a file; whether that is not its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _FILE))
    if size > _FILE:
        next(whole_lines(file), None)
    return size > _FILE


def whole_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a file that are ended; None for one that is longer than any run writes."""
    while line := file.readline(_LINE):
        if line.endswith(b"\n"):
            yield line
        elif len(line) == _LINE:
            while (rest := file.readline(_LINE)) and not rest.endswith(b"\n"):
                pass
            yield None


def told(damage: Damage) -> Iterator[str]:
    """What people should know of what was left out: a line a file, of at most ten."""
    for name, why in islice(damage.items(), 10):
        yield f"{name}: {why}"
    if len(damage) > 10:
        yield f"and {len(damage) - 10:,} more files are damaged"


_ANY: TypeAdapter[Any] = TypeAdapter(dict[str, Any])


class MainTrainings:
    """Tells a step's main training from the others that it may have, such as an expert's or
    fine-tuning, by their records in the order of time: a chain begins with a main one."""

    def __init__(self) -> None:
        self._labels: dict[tuple[str, int], str] = {}

    def has(self, phase: Phase) -> bool:
        """Whether a training phase is one."""
        method, seed, _, label = phase
        return self._labels.setdefault((method, seed), label) == label
