"""How a command ends: one line for what the user can mend, and an exit status for scripts."""

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
    """Errors that the user can mend are one line, Ctrl-C and SIGTERM say how to go on.

    Of others the stack trace is printed, without the passwords of URLs.
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
        if ended.code == _INTERRUPTED:  # Typer turns Ctrl-C into this
            _stop("\ninterrupted: the same command goes on where this one stopped", _INTERRUPTED)
        raise


def _stop(message: str, code: int) -> None:
    """Ends at once: a Ray Train thread may still be waiting for its workers."""
    with contextlib.suppress(BrokenPipeError):
        print(printable(message, keep="\n"), file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(code)
