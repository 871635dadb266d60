"""The output of commands: to a terminal, or to a file or pipe, where lines are wider.

Printed text may contain names from datasets, run folders and messages of others. So it is never
interpreted as markup, and control characters are escaped; escaping values in each place that prints
them was forgotten in one place of ten.
"""

import contextlib
import json
import locale
import os
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from untrusted.text import printable

_WIDE = 132
_MARKS = {"✓ ": "green", "! ": "yellow"}


class Terminal(Console):
    """A console whose texts are plain; a leading ✓ or ! is coloured."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Rich renders every printed text by this method, including cells and titles of tables."""
        plain = {**options, "markup": False, "emoji": False, "highlight": False}
        shown = super().render_str(printable(text, keep="\n"), **plain)
        if colour := _MARKS.get(text[:2]):
            shown.stylize(colour, 0, 1)
        return shown


_narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
console = Terminal(highlight=False, width=None if _narrow else _WIDE)


def say(text: str, end: str = "\n") -> None:
    """Prints untrusted text, without wrapping it."""
    print(printable(text, keep="\n\t"), end=end, flush=True)


def say_json(value: Any, indent: int | None = 1) -> None:
    """Prints a value as JSON in ASCII, so that the locale cannot garble it."""
    print(json.dumps(value, indent=indent), flush=True)


def begin_in_utf_8() -> None:
    """Restarts this process in Python's UTF-8 mode if the locale is another.

    File names, arguments and all child processes are then UTF-8; decoded by ISO-8859-1 they would
    be stored garbled, and decoded by ASCII some could not be printed. It must be a restart: Python
    decodes arguments and file names before our first line runs.
    """
    os.environ["PYTHONUTF8"] = "1"
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def prepare_output() -> None:
    """Makes printing safe in any locale: terminals get escapes for characters that they cannot
    show, files and pipes get UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a test's stand-in, or closed
            encoding = locale.getencoding() if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")  # type: ignore[union-attr]
