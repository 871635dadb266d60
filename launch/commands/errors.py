"""The end of a command: one line for errors that a user can correct, and the exit status."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

from data_shards.settings import InputError
from launch.exits import PREEMPTED, WITHHELD, Preempted, Withheld
from launch.terminal.console import prepare_output
from untrusted.text import printable, redacted

_INTERRUPTED = 130


def report_errors(command: Callable[[], None]) -> None:
    """Runs `command` and ends the process by its outcome.

    InputError, Ctrl-C and SIGTERM print one line; other exceptions a stack trace, without the
    passwords of URLs.
    """
    prepare_output()
    try:
        command()
    except InputError as error:
        _stop(f"error: {error}", 2)
    except Preempted as ended:
        _stop(str(ended), PREEMPTED)
    except Withheld as refused:
        _stop(str(refused), WITHHELD)
    except Exception:  # our own fault; its message may hold text of others
        print(redacted(printable(traceback.format_exc(), keep="\n")), file=sys.stderr)
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:  # Typer turns Ctrl-C into this, without an exception
            _stop("\ninterrupted: the same command goes on where this one stopped", _INTERRUPTED)
        raise


def _stop(message: str, code: int) -> None:
    """Ends without waiting for threads: one of Ray Train may still be waiting for its workers."""
    with contextlib.suppress(BrokenPipeError):
        print(printable(message, keep="\n"), file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)
