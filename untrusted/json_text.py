"""JSON of a stranger: bounded in depth, each key once, and what is wrong said in one way."""

import json
from typing import Any

_DEPTH = 64


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text in UTF-8.

    Raises ValueError for anything else: other encodings, a key given twice, nesting deeper than 64,
    integers of thousands of digits. The caller bounds the length.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
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
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
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
