"""Where commands print: a terminal, or a file or pipe, whose lines may be as long as they need.

What is printed may hold names out of datasets, run folders and messages of others: it is shown as
it stands, never read as markup, and no character of it steers the terminal.
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
        """Everything that is printed comes here, cells and titles of tables too."""
        plain = {**options, "markup": False, "emoji": False, "highlight": False}
        shown = super().render_str(printable(text, keep="\n"), **plain)
        if colour := _MARKS.get(text[:2]):
            shown.stylize(colour, 0, 1)
        return shown


_narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
console = Terminal(highlight=False, width=None if _narrow else _WIDE)


def say(text: str, end: str = "\n") -> None:
    """Prints text of others as it stands, without wrapping it."""
    print(printable(text, keep="\n\t"), end=end, flush=True)


def say_json(value: Any, indent: int | None = 1) -> None:
    """Prints a value as JSON in ASCII, which no terminal, locale or pipe changes."""
    print(json.dumps(value, indent=indent), flush=True)


def begin_in_utf_8() -> None:
    """Begins this process anew in Python's UTF-8 mode where the locale is another.

    File names, arguments and all processes that it starts are then UTF-8; decoded by ISO-8859-1
    they would be stored garbled, and decoded by ASCII some could not be printed.
    """
    os.environ["PYTHONUTF8"] = "1"
    if not sys.flags.utf8_mode and sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def prepare_output() -> None:
    """Makes printing never fail, whatever the locale: what a terminal cannot show is spelled out;
    files and pipes get UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # a test's stand-in, or closed
            encoding = locale.getencoding() if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")  # type: ignore[union-attr]
