"""Hashes of files and values, and atomic writing."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from untrusted.errors import InputError


def sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pinned_sha256(key: str, file: Path, expected: str | None, remedy: str) -> str:
    """The sha256 of the `file` that a configuration names by `key`.

    Raises InputError when it is missing, or when another hash is `expected`.
    """
    if not file.exists():
        raise InputError(f"{key} {file} does not exist: {remedy}")
    found = sha256(file)
    if expected not in (None, found):
        raise InputError(
            f"{file} has sha256 {found}, not {key.rpartition('.')[0]}.sha256 = {expected}: restore "
            "the file, or change the key"
        )
    return found


def fingerprint(value: Any) -> str:
    """A short hash of any JSON-serialisable value that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def fsync(path: Path) -> None:
    """Forces a file's or a folder's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file atomically: a reader, or a crash, sees the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # not by pid: processes of several hosts may write the same file
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        # before the rename: after a power cut the name could otherwise lead to an empty file
        os.fsync(file.fileno())
    part.rename(path)
    fsync(path.parent)  # a rename is durable only once its folder is


def write_json(path: Path, value: Any) -> None:
    """`write_atomically` for a JSON value, indented for people."""
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def printable(text: str) -> str:
    """`text` with what is not valid Unicode (bytes of odd file names) spelled out."""
    return text.encode(errors="backslashreplace").decode()
