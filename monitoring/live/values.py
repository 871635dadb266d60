"""What strangers' JSON may hold, as plain values or None."""

import math
import os
from typing import Any

Chain = tuple[str, int]


def number(value: Any) -> float | None:
    """A value as a float; None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def finite(value: Any) -> float | None:
    """A value as a finite float, or None."""
    found = number(value)
    return found if found is not None and math.isfinite(found) else None


def shown(value: Any) -> float | str | None:
    """A number as JSON can say it: what is not finite as a word."""
    found = number(value)
    return found if found is None or math.isfinite(found) else str(found)


def text(value: Any) -> str | None:
    """A string, cut at 2000 characters; None where it is none."""
    return value[:2000] if isinstance(value, str) else None


def printable(name: str) -> str:
    """A file's name as browsers can say it: with a sign for every byte that is no UTF-8."""
    return os.fsencode(name).decode(errors="replace")


def moment(value: Any) -> float | None:
    """A time in Unix seconds; None where it cannot be one."""
    found = finite(value)
    return found if found is not None and 0 <= found < 1e11 else None
