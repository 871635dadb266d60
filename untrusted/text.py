"""Text of a stranger on its way to people: nothing that steers a terminal, no passwords."""

import codecs
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from untrusted.errors import InputError
from untrusted.files import read_bytes

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode categories: control, format (bidirectional overrides), surrogates, private use, ends."""
_ESCAPED = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_USER = re.compile(r"(?<=://)[^/?#\s'\"@]*:[^/?#\s'\"]*@|(?<=://)[^/?#\s'\"@:]+@")
_SECRET = re.compile(
    r"(?i)([?&;](?:[\w.-]*(?:token|secret|signature|password|passwd|credential|apikey|api_key)"
    r"[\w.-]*|sig|key)=)[^&#\s'\"]+"
)


def printable(text: str, keep: str = "") -> str:
    """`text` with every character that is not seen spelled out (``\\x1b``), but those in `keep`."""
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _UNSEEN
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def redacted(text: str) -> str:
    """`text` without the passwords of URLs: of ``user:password@`` and of queries (``?token=``)."""
    return _SECRET.sub(r"\1***", _USER.sub("***@", text))


def decoded(content: bytes, name: str) -> str:
    """The text of a user's file in UTF-8, without a byte-order mark.

    Raises InputError naming the file: of the line that is not UTF-8, and of UTF-16 as such.
    """
    name = printable(name)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{name} is UTF-16: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the error counts from behind a byte-order mark
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}, line {line} is not UTF-8: save it as UTF-8") from error


def read_lines(path: Path, name: str, limit: int = 1 << 28) -> list[str]:
    """The lines of a user's text file, see `decoded`, each without its end (a line feed, with a
    carriage return before it or not) and nothing else cut.

    `name` says what the file is for, as `--names`. Raises InputError.
    """
    try:
        content = read_bytes(path, limit)
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{printable(f'{name} {path}')} cannot be read: {why}") from error
    lines = decoded(content, f"{name} {path}").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def file_name(path: str | os.PathLike[str]) -> str:
    """The name of a file as UTF-8, whatever the locale by which Python decoded it; bytes that are
    no UTF-8 stay surrogates."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def tsv_line(cells: Iterable[str]) -> str:
    r"""A line of columns with its end. Within a cell a backslash is ``\\``, and a tab, an end of a
    line or whatever else is not seen is ``\t``, ``\n``, ``\x1b``."""
    return "\t".join(printable(cell.replace("\\", "\\\\")) for cell in cells) + "\n"


def tsv_cells(line: str) -> list[str]:
    """The cells of a line of `tsv_line`."""
    return [
        _ESCAPED.sub(lambda found: found[0].encode().decode("unicode_escape"), cell)
        for cell in line.removesuffix("\n").split("\t")
    ]
