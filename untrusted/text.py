"""Prepares untrusted text for people: without terminal control characters and passwords."""

import os
import re
import unicodedata
from collections.abc import Iterable

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Unicode categories: control, format (bidirectional overrides), surrogates, private use, ends."""
_ESCAPED = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_USER = re.compile(r"(?<=://)[^/?#\s'\"@]*:[^/?#\s'\"]*@|(?<=://)[^/?#\s'\"@:]+@")
_PASSWORD = re.compile(r"://[^/?#\s]*:[^/?#\s]*@|https?://[^/?#\s]+@", re.I)
# bounded repetitions: a hostile text of `token` a thousand times is then searched in linear time
_SAYS = (
    r"[\w.-]{0,64}(?:token|secret|signature|password|passwd|credential|apikey|api_key)[\w.-]{0,64}"
)
_QUERY = re.compile(rf"([?&;](?:{_SAYS}|sig|key)=)[^&#\s'\"]+", re.I)
_ASSIGNED = re.compile(rf"((?<![\w.-]){_SAYS}=)[^&#\s'\"]+", re.I)
_QUOTED = re.compile(
    rf"(\\?['\"]{_SAYS}\\?['\"]\s{{0,9}}:\s{{0,9}}(\\?['\"]))(?:\\.|[^\\]){{0,4096}}?(?=\2)", re.I
)
_HEADER = re.compile(r"(authorization['\"]?: *['\"]?\w+ +)[^\s'\"]+", re.I)


def printable(text: str, keep: str = "") -> str:
    """`text` with all invisible characters but those in `keep` escaped, such as ``\\x1b``."""
    return "".join(
        character
        if character in keep or unicodedata.category(character) not in _UNSEEN
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def redacted(text: str) -> str:
    """`text` without passwords: of URLs (``user:password@``, ``?token=``), of headers."""
    for secret in (_QUERY, _ASSIGNED, _QUOTED, _HEADER):
        text = secret.sub(r"\1***", text)
    return _USER.sub("***@", text)


def holds_secret(location: str) -> bool:
    """Whether a URL contains a password or token.

    A user without a password counts with http and https only; ``ssh://me@host`` has no secret.
    """
    return bool(_QUERY.search(location) or _PASSWORD.search(location))


def file_name(path: str | os.PathLike[str]) -> str:
    """A file's name decoded as UTF-8, whatever locale Python decoded it by.

    Bytes that are no UTF-8 become surrogates.
    """
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def tsv_line(cells: Iterable[str]) -> str:
    r"""A line of tab-separated columns, with its end.

    Within a cell backslashes, tabs, line ends and other invisible characters are escaped: ``\\``,
    ``\t``, ``\n``, ``\x1b``.
    """
    return "\t".join(printable(cell.replace("\\", "\\\\")) for cell in cells) + "\n"


def tsv_cells(line: str) -> list[str]:
    """The cells of a line of `tsv_line`."""
    return [
        _ESCAPED.sub(lambda found: found[0].encode().decode("unicode_escape"), cell)
        for cell in line.removesuffix("\n").split("\t")
    ]
