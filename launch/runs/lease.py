"""Who may write a run folder: one attempt at a time, on whichever host.

``RUN/attempts/N.json`` is the lease of attempt N, and the highest is the holder's. It is created
exclusively, so that an attempt number is one process's, and then written by that process alone, as
a sign of life. Whoever finds a higher one than its own writes nothing more to the run.
"""

import contextlib
import errno
import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from data_shards.files import write_atomically
from data_shards.settings import InputError
from monitoring.run_folder import ATTEMPTS_FOLDER
from untrusted.files import Refused, read_bytes
from untrusted.text import printable

_BYTES = 1 << 16
_NUMBERED = re.compile(r"[0-9]{1,18}")
_Moment = Annotated[float, Field(ge=0, lt=2**33)]
_RENEWALS = 5
"""Signs of life within the time after which a holder is taken to be dead."""
_BYTES = 1 << 16
_LOOKS = 20
"""Looks at another's lease within that time."""


class Superseded(InputError):
    """Another attempt holds the run now: this one may not write any more."""


@dataclass(frozen=True)
class Process:
    """A process, known from any host."""

    host: Annotated[str, Field(max_length=300), AfterValidator(printable)]
    """For people only: hosts may share a name."""
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    born: int
    """Its start in clock ticks since boot: tells it from a later one with the same pid."""
    place: str
    """Equal where pids and monotonic clocks mean the same: the boot, and the pid namespace."""

    @classmethod
    def this(cls) -> "Process":
        """The process that asks."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        place = f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()) or 0, place)

    def alive(self) -> bool:
        """Whether it is there, frozen or not. To be asked in its own place only."""
        return _born(self.pid) == self.born

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _born(pid: int) -> int | None:
    """When a process started, clock ticks since boot; None for one that is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else int(rest[18])


@dataclass(frozen=True)
class Lease:
    """What an attempt's file says."""

    attempt: Annotated[int, Field(ge=0)]
    holder: Process
    began: _Moment
    """When it took the run: seconds since 1970 by the clock of its host, for people."""
    renewed: _Moment
    """Its newest sign of life, likewise."""
    clock: Annotated[float, Field(allow_inf_nan=False)]
    """The same by the monotonic clock of its place."""
    seconds: Annotated[float, Field(gt=0, le=1e8)]
    """It gives a sign of life well within so long."""
    ended: bool = False
    """It has given the run back."""

    @classmethod
    def parse(cls, content: bytes) -> "Lease | None":
        """The lease in a file; None where its holder has not got to writing it, or it is none.

        Strictly: a process number of -1 would be every process, when it is sent SIGTERM.
        """
        try:
            return TypeAdapter(cls).validate_json(content, strict=True)
        except ValidationError:
            return None

    def content(self) -> bytes:
        """What `parse` reads."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()

    def renew(self, ended: bool = False) -> "Lease":
        """The same, alive now."""
        return replace(self, renewed=time.time(), clock=time.monotonic(), ended=ended)

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.began, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"attempt {self.attempt} ({self.holder}, since {since})"


Verdict = Literal["held", "ended", "gone", "silent", "unknown"]
"""The last: it must be watched from elsewhere, whether it changes."""


def judge(lease: Lease, place: str, alive: bool, now: float, unchanged: float) -> Verdict:
    """What has become of a lease's holder, as seen from `place`.

    `alive`, and the monotonic clock's `now`, count for a holder in the same place only: of another
    host nothing is believed but that its lease was `unchanged` for so many seconds of our own.
    """
    if lease.ended:
        return "ended"
    if lease.holder.place != place:
        return "silent" if unchanged > lease.seconds else "unknown"
    if not alive:
        return "gone"
    return "silent" if now - lease.clock > lease.seconds else "held"


@dataclass(frozen=True)
class Fence:
    """Lets an attempt's processes write as long as no later one has begun; travels to workers."""

    folder: Path | None = None
    """The run's attempts, an absolute path; none: nothing is shared, and all may write."""
    attempt: int = 0

    def check(self) -> None:
        """Raises Superseded when a later attempt holds the run."""
        if self.folder is None or not (later := _file(self.folder, self.attempt + 1)).exists():
            return
        found = Lease.parse(_content(later))
        raise Superseded(
            f"{found or f'attempt {self.attempt + 1}'} has taken over {self.folder.parent}: "
            f"attempt {self.attempt} writes nothing more"
        )

    def lost(self) -> bool:
        """Whether `check` raises."""
        return self.folder is not None and _file(self.folder, self.attempt + 1).exists()


UNFENCED = Fence()


@dataclass(frozen=True)
class Attempt:
    """A run that is this process's to write."""

    lease: Lease
    fence: Fence
    took_over: str
    """From whom, and why, where the attempt before had not ended."""

    def event(self) -> dict[str, Any]:
        """What events.jsonl says of its beginning."""
        number, holder = self.lease.attempt, self.lease.holder
        event = {"event": "attempt", "attempt": number, "host": holder.host, "pid": holder.pid}
        if self.took_over:
            event["message"] = f"attempt {number} took over from {self.took_over}"
        return event


def _file(folder: Path, attempt: int) -> Path:
    return folder / f"{attempt}.json"


def _content(path: Path) -> bytes:
    """What is in an attempt's file; nothing where it is no file, or far too long for one."""
    try:
        return read_bytes(path, _BYTES)
    except Refused:
        return b""


def newest(folder: Path) -> int:
    """The number of the newest attempt at the run in `folder`; 0 before the first."""
    files = (folder / ATTEMPTS_FOLDER).glob("*.json")
    numbers = (int(file.stem) for file in files if _NUMBERED.fullmatch(file.stem))
    return max(numbers, default=0)


def ask_to_end(folder: Path) -> Process:
    """Sends SIGTERM to the driver that holds the run in `folder`, and returns it.

    Raises InputError where nobody does, or a process elsewhere.
    """
    last = newest(folder)
    lease = Lease.parse(_content(_file(folder / ATTEMPTS_FOLDER, last))) if last else None
    if lease is None or lease.ended:
        raise InputError(f"nobody is running {folder}: there is nothing to stop")
    if lease.holder.place != Process.this().place:
        raise InputError(f"{folder} is being run by {lease}: send that process SIGTERM there")
    attempts = folder.resolve() / ATTEMPTS_FOLDER
    if not lease.holder.alive() or not _has_open(lease.holder.pid, attempts):
        raise InputError(f"{folder} was being run by {lease}, which is gone: nothing to stop")
    try:
        os.kill(lease.holder.pid, signal.SIGTERM)
    except PermissionError as error:
        raise InputError(f"{folder} is being run by {lease}, another user's: ask them") from error
    return lease.holder


def _has_open(pid: int, folder: Path) -> bool:
    """Whether a process has a folder open, as who holds a run has its attempts.

    A stranger's lease may name any process of this machine, and what he names is not to be ended.
    """
    with contextlib.suppress(OSError):  # not ours, or it has just ended
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has just closed this one
                if entry.readlink() == folder:
                    return True
    return False


@contextmanager
def holding(
    folder: Path, seconds: float, tell: Callable[[str], None] = lambda line: None
) -> Iterator[Attempt]:
    """Holds the run in `folder` against every other process, on any host that shares it.

    A holder that dies without a word, or gives no sign of life for its lease's `seconds`, loses the
    run to whoever asks next; `tell` hears why that takes long. Raises InputError saying who
    holds it.
    """
    attempts = folder.resolve() / ATTEMPTS_FOLDER
    try:
        attempts.mkdir(parents=True, exist_ok=True)
        if not os.access(attempts, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written to ({error.strerror}): give another run folder by --out"
        ) from error
    attempt = None
    while attempt is None:
        attempt = _claim(attempts, seconds, tell)
    path, over = _file(attempts, attempt.lease.attempt), threading.Event()

    def renew() -> None:
        while not over.wait(seconds / _RENEWALS):
            if attempt.fence.lost():
                return  # whatever writes finds out by itself
            with contextlib.suppress(OSError):  # a file system that hangs or is full: once more
                write_atomically(path, attempt.lease.renew().content())

    opened = os.open(attempts, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # see `_has_open`
    renewal = threading.Thread(target=renew, daemon=True)
    renewal.start()
    try:
        yield attempt
    finally:
        os.close(opened)
        over.set()
        renewal.join()
        with contextlib.suppress(OSError):  # whoever comes next finds this process gone
            write_atomically(path, attempt.lease.renew(ended=True).content())


def _claim(attempts: Path, seconds: float, tell: Callable[[str], None]) -> Attempt | None:
    """Takes the run as its next attempt; None when somebody else was quicker.

    Raises InputError when it is held.
    """
    here, last = Process.this(), newest(attempts.parent)
    took_over = (
        _await_end(attempts=attempts, number=last, place=here.place, seconds=seconds, tell=tell)
        if last
        else ""
    )
    lease = Lease(
        attempt=last + 1, holder=here, began=time.time(), renewed=0.0, clock=0.0, seconds=seconds
    ).renew()
    try:
        file = os.open(_file(attempts, last + 1), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(file, "wb") as out:
        out.write(lease.content())
        out.flush()
        os.fsync(file)
    return Attempt(lease, Fence(attempts, last + 1), took_over)


def _await_end(
    attempts: Path, number: int, place: str, seconds: float, tell: Callable[[str], None]
) -> str:
    """Waits until an attempt's holder is known to have ended; returns how, if not in peace.

    Raises InputError when it is alive.
    """
    since, seen, told = time.monotonic(), b"", False
    while True:
        content = _content(_file(attempts, number))
        nobody = Lease(
            attempt=number,
            holder=Process("an unknown host", 0, 0, ""),
            began=time.time(),
            renewed=0,
            clock=0,
            seconds=seconds,
        )
        lease = Lease.parse(content) or nobody
        now = time.monotonic()
        alive = lease.holder.place == place and lease.holder.alive()
        verdict = judge(lease, place, alive, now, now - since if content == seen else 0.0)
        if verdict == "held" or (verdict == "unknown" and seen not in (b"", content)):
            raise InputError(
                f"{attempts.parent} is being run by {lease}: wait for it, or end it first"
            )
        if verdict != "unknown":
            reason = "is gone" if verdict == "gone" else f"was silent for {lease.seconds:g} s"
            return "" if verdict == "ended" else f"{lease}, which {reason}"
        if not told:
            tell(f"{lease} may be running {attempts.parent}: watching it for {lease.seconds:g} s")
            told = True
        if seen != content:
            seen, since = content, now
        time.sleep(lease.seconds / _LOOKS)
