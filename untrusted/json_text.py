"""Parses untrusted JSON: bounded depth and number of values, no repeated keys, one error type."""

import json
from typing import Any

_DEPTH = 64
_FREE, _LENGTH = 1_000_000, 16
"""Values that any text may hold, and characters required for each further one: a value of two
characters becomes an object of sixty bytes and more."""


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text in UTF-8.

    Raises ValueError for anything else: other encodings, a key given twice, nesting deeper than 64,
    integers of thousands of digits, millions of tiny values. The caller bounds the length.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    if sum(map(text.count, "[{,")) > _FREE + len(text) // _LENGTH:
        raise ValueError("it holds too many values for its length")
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if _deeper(value, _DEPTH):
        raise ValueError(f"it is nested more than {_DEPTH} deep")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} is given twice")
    return found


def _deeper(value: Any, depth: int) -> bool:
    """Whether `value` is nested more than `depth` deep, without recursion."""
    level = [value]
    for _ in range(depth):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(v for v in one.values() if isinstance(v, dict | list))
            elif isinstance(one, list):
                inner.extend(v for v in one if isinstance(v, dict | list))
        if not inner:
            return False
        level = inner
    return True
