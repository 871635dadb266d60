"""Estimates the memory that a protobuf message will take, before a parser makes objects of it.

Two bytes of a file can become an object of more than a hundred: 16 MB of empty messages take
1.2 GB. Plain bytes (the numbers of a weight) are copied by a parser and take their own size.
"""

from collections.abc import Mapping

FIELDS = 1_000_000
"""The most fields that are counted."""
Kinds = Mapping[str, Mapping[int, str]]
"""For each kind of message, the kind of the messages in its fields; "" are plain bytes."""


def structure(content: bytes, kinds: Kinds, root: str) -> int:
    """The number of bytes of `content`, a message of kind `root`, that are not plain bytes.

    Raises ValueError when it is no message, or has more than `FIELDS` fields.
    """
    plain = fields = 0
    waiting = [(0, len(content), root)]
    while waiting:
        at, end, kind = waiting.pop()
        while at < end:
            if (fields := fields + 1) > FIELDS:
                raise ValueError(f"it has more than {FIELDS:,} fields")
            key, at = _number(content, at)
            wire = key & 7
            if wire == 0:
                _, at = _number(content, at)
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            elif wire == 2:
                length, at = _number(content, at)
                inner = kinds[kind].get(key >> 3)
                if inner == "":
                    plain += length
                elif inner is not None:
                    waiting.append((at, at + length, inner))
                at += length
            else:
                raise ValueError("it has groups, which were given up")
            if at > end:
                raise ValueError("a field is longer than its message")
    return len(content) - plain


def _number(content: bytes, at: int) -> tuple[int, int]:
    """The varint that begins at `at`, and where it ends. Raises ValueError."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has no end")
