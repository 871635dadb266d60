"""Names that files give to other files: each is one plain name, and leads nowhere else."""

import re

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BYTES = 255
"""What a name may have on Linux."""


def plain_name(name: object) -> str:
    """`name`, where it is that of a file in the folder at hand. Raises ValueError otherwise.

    No separators of any system, none that is hidden, no control characters, 255 bytes at most.
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
    """`digest`, where it is a sha256 in lower-case hexadecimal. Raises ValueError otherwise."""
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ValueError(f"{str(digest)[:70]!r} is no sha256")
    return digest
