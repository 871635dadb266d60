"""Checks names of files and digests that untrusted files contain."""

import re

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BYTES = 255
"""The longest file name on Linux."""


def plain_name(name: object) -> str:
    """Returns `name` if it names a file in the same folder. Raises ValueError otherwise.

    Refused are separators of any system, hidden names, control characters, and more than 255 bytes.
    """
    if (
        not isinstance(name, str)
        or not name
        or name.startswith(".")
        or set(name) & set("/\\:")
        or not name.isprintable()
        or len(name.encode(errors="surrogatepass")) > _BYTES
    ):
        raise ValueError(f"{str(name)[:60]!r} is not the plain name of a file")
    return name


def sha256_text(digest: object) -> str:
    """Returns `digest` if it is a sha256 in lower-case hexadecimal. Raises ValueError otherwise."""
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"{str(digest)[:70]!r} is no sha256")
    return digest
