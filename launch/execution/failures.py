"""Why training workers ended, in words, and when starting them again is of no use."""

import faulthandler
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from monitoring.run_folder import LOGS_FOLDER
from untrusted.files import no_link

_LOST = ("closed by peer", "reset by peer", "gloo", "nccl", "timed out waiting", "distbackend")
"""Words of what a rank raises because another one has ended."""
_DEAD = ("RayActorError", "WorkerHealthCheckTimeoutError")
"""Ray's exceptions, by name, where a worker's process cannot be asked any more."""
_SHOWN = 300
_KILLED = (
    "its process was killed (by the system where memory ran out, or by somebody; or its machine "
    "was lost)"
)


@dataclass(frozen=True)
class Failure:
    """The end of a group of workers."""

    ranks: tuple[int, ...]
    """Those that it began with."""
    why: str
    within: bool
    """Whether the workers' own program failed: what was killed from outside may go well again."""
    preempted: bool = False
    """Whether a machine was taken away, as clusters do: no number of times is too often."""

    def kind(self) -> str:
        """Equal for failures that differ in numbers and addresses alone."""
        return re.sub(r"0x[0-9a-f]+|\d+", "#", self.why)


class Repeats:
    """Finds out that workers fail again and again at the same place."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def futile(self, failure: Failure, furthest: int) -> bool:
        """Whether the last failure was like this one, and no iteration was new in between.

        `furthest` is the highest iteration that was ever reported.
        """
        this = (failure.kind(), furthest)
        again, self._last = this == self._last, this
        return again and failure.within


def explain(errors: Mapping[int, BaseException], crashes: Mapping[int, str]) -> Failure:
    """What a group's end began with.

    `errors` is what Ray Train knows of each rank, `crashes` what ranks left by `crash_told`.
    """
    failure = _beginning(errors, crashes)
    # Ray's own rule: with one machine taken away, the others' errors follow from that
    gone = any(getattr(_cause(error), "preempted", False) for error in errors.values())
    return replace(failure, preempted=gone)


def _beginning(errors: Mapping[int, BaseException], crashes: Mapping[int, str]) -> Failure:
    if crashes:
        return Failure(tuple(sorted(crashes)), _crash(next(iter(crashes.values()))), within=True)
    raised = {rank: _raised(error) for rank, error in errors.items()}
    own = {r: line for r, line in raised.items() if line and not _lost(line)}
    if own:
        first = min(own)
        same = tuple(sorted(rank for rank, line in own.items() if line == own[first]))
        return Failure(same, own[first], within=True)
    dead = [rank for rank, line in raised.items() if not line]
    if not dead:
        return Failure(tuple(sorted(raised)), next(iter(raised.values())) or "", within=False)
    code = re.search(r"exit code[ =:]*([1-9]\d*)", str(errors[dead[0]]))
    why = f"its process ended by itself with exit code {code[1]}" if code else _KILLED
    return Failure(tuple(sorted(dead)), why, within=code is not None)


def _cause(error: BaseException) -> BaseException:
    """What Ray Train has wrapped."""
    return getattr(error, "health_check_failure", error)


def _raised(error: BaseException) -> str:
    """The last line of a worker's own exception; empty where its process has died."""
    cause = _cause(error)
    if any(kind.__name__ in _DEAD for kind in type(cause).__mro__):
        return ""
    text = str(cause)
    if "Traceback (most recent" not in text:
        text = f"{type(cause).__name__}: {text}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # the message may have lines of its own: the exception's begins at the margin
    starts = [line for line in text.splitlines() if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
    return (starts or lines or [type(error).__name__])[-1][:_SHOWN]


def last_line(error: BaseException) -> str:
    """An exception in one line: its kind, and the last line of what it says."""
    line = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {line}".removesuffix(": ")


def _lost(line: str) -> bool:
    return any(word in line.lower() for word in _LOST)


def _crash(text: str) -> str:
    """A crash in one line: what Python's fault handler wrote of the signal and the place."""
    what = text.splitlines()[0].removeprefix("Fatal Python error: ")
    current = text.partition("Current thread")[2]
    place = re.search(r'File "([^"]+)", line (\d+) in (.+)', current)
    at = f" in {place[3]} ({Path(place[1]).name}, line {place[2]})" if place else ""
    return f"its process crashed: {what}{at}"


def crashes(folder: Path, ranks: int) -> dict[int, str]:
    """What the `ranks` of the run in `folder` left by `crash_told`; those without a word not."""
    files = {rank: crash_file(folder, rank) for rank in range(ranks)}
    texts = {
        r: f.read_text(encoding="utf-8", errors="replace") for r, f in files.items() if f.exists()
    }
    return {rank: text for rank, text in texts.items() if text}


def crash_file(folder: Path, rank: int) -> Path:
    """Where a rank of the run in `folder` leaves word of a crash."""
    return folder / LOGS_FOLDER / f"trainer-{rank}.crash"


@contextmanager
def crash_told(path: Path) -> Iterator[None]:
    """Lets a fatal signal of this process write its name and Python's stack to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", opener=no_link) as file:
        faulthandler.enable(file)
        try:
            yield
        finally:
            faulthandler.enable()  # to standard error, as Ray has it
    path.unlink(missing_ok=True)
