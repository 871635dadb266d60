"""Reads text files that a user gives: UTF-8, by lines."""

import codecs
from pathlib import Path

from untrusted.errors import InputError
from untrusted.files import read_bytes
from untrusted.text import printable


def decoded(content: bytes, name: str) -> str:
    """The text of a user's file in UTF-8, without a byte-order mark.

    Raises InputError naming the file, and the line that is not UTF-8; UTF-16 is named as such.
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
    """The lines of a user's text file, without their ends (LF or CRLF), otherwise unchanged.

    `name` is the file's purpose, for errors, such as `--names`. Raises InputError as `decoded`.
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
