"""Structured logs: every process of a run writes JSON lines into one folder, read as one log."""

import heapq
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from monitoring.records import checked, whole_lines
from monitoring.run_folder import LOGS_FOLDER, log_file
from monitoring.schemas import LOG_LINE
from untrusted.files import open_regular
from untrusted.json_text import parse_json
from untrusted.text import printable, redacted

_BYTES, _OLDER = 16 * 2**20, 3

LOG = logging.getLogger("perennial")
Context = Callable[[], dict[str, Any]]


class LogFile(RotatingFileHandler):
    """A log on a disk that may be full: its lines wait or are lost, and nothing else happens."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, where it comes from, message, traceback."""

    def __init__(self, constant: dict[str, Any], context: Context) -> None:
        """`constant` is said in every line, `context` is asked for each."""
        super().__init__()
        self._constant, self._context = constant, context

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname.lower(),
            **self._constant,
            **self._context(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        if record.exc_info:
            line["traceback"] = redacted(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


@contextmanager
def logging_to(
    folder: Path,
    name: str,
    constant: dict[str, Any],
    context: Context = dict,
    expected: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
) -> Iterator[None]:
    """Appends what this process logs, and its warnings, to ``logs/NAME.jsonl`` in a run folder.

    So does what ends it: an exception with its traceback, an `expected` one without. At most
    64 MiB are kept of each `name`.
    """
    path = log_file(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(path, maxBytes=_BYTES, backupCount=_OLDER, encoding="utf-8")
    handler.setFormatter(JsonLines(constant, context))
    root, before = logging.getLogger(), LOG.level
    root.addHandler(handler)
    LOG.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    except expected as ended:
        LOG.warning("%s", str(ended) or "interrupted")
        raise
    except Exception as error:  # an exit, and the end of an actor, are none
        LOG.exception("%s", str(error) or type(error).__name__)
        raise
    finally:
        logging.captureWarnings(False)
        LOG.setLevel(before)
        root.removeHandler(handler)
        handler.close()


def read_logs(
    folder: Path,
    rank: int | None = None,
    phase: str | None = None,
    since: float = 0.0,
    level: str = "info",
) -> Iterator[dict[str, Any]]:
    """The lines of a run folder's logs in the order of time, from the moment `since` on.

    `phase` keeps those whose phase contains it, `level` those at least so grave. A line that a
    crash cut short, or that no run has written, is passed over, and so is a file that is none.
    """
    gravest = logging.getLevelNamesMapping()
    files = sorted((folder / LOGS_FOLDER).glob("*.jsonl*"))
    for line in heapq.merge(*map(_lines, files), key=lambda line: line["time"]):
        if (
            line["time"] >= since
            and (rank is None or line.get("rank") == rank)
            and (phase is None or phase in line.get("phase", ""))
            and gravest.get(line["level"].upper(), 0) >= gravest[level.upper()]
        ):
            yield line


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open_regular(path) as file:
            for text in whole_lines(file):
                with suppress(ValueError):
                    line = parse_json((text or b"").decode(errors="replace"))
                    yield checked(line, LOG_LINE)
    except OSError:
        return


def in_words(line: dict[str, Any]) -> str:
    """A line for people: local time, level, process, phase, iteration, message, traceback."""
    at = datetime.fromtimestamp(line["time"], UTC).astimezone().strftime("%m-%d %H:%M:%S")
    where = [str(line[key]) for key in ("job", "rank", "actor", "phase") if key in line]
    if "iteration" in line:
        where.append(f"iteration {line['iteration']:,}")
    text = printable(f"{at} {line['level']:<8}{' '.join(where)}: {line['message']}", keep="\n\t")
    trace = line.get("traceback", "").splitlines()
    return text + "".join(f"\n    {printable(part)}" for part in trace)


def moment(text: str, now: float) -> float:
    """The time that `text` names: so long before `now` (90s, 10m, 2h, 1d), or an ISO 8601 one.

    Raises ValueError.
    """
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return now - float(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[ago[2]]
    return datetime.fromisoformat(text).astimezone().timestamp()
