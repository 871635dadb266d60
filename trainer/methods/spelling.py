"""How a recipe's parts are spelled in fingerprints: once released, the same for ever.

A fingerprint decides whether finished work is done again, so nobody's runs may be trained anew
because a field was renamed or added. Terms used to be spelled by Python's ``repr``; this text is
what that gave, whatever the fields are called by now.
"""

from dataclasses import field, fields
from typing import Any

_AS = "spelled"
_LATER = "added_later"


def renamed(spelled: str, **options: Any) -> Any:
    """A dataclass field that fingerprints call `spelled`; `options` are those of ``field``."""
    return field(metadata={_AS: spelled}, **options)


def added(default: Any) -> Any:
    """A dataclass field that fingerprints name only where it differs from its `default`.

    For fields added to a released Term or want: runs of before did as the default says.
    """
    return field(default=default, metadata={_LATER: True})


def spelled(part: Any) -> str:
    """A Term or want as fingerprints have it: ``Name(field=value, ...)`` and what its class adds.

    A class whose released text ended in more than its present fields keeps that in ``spelled_end``.
    """
    shown = [
        f"{own.metadata.get(_AS, own.name)}={getattr(part, own.name)!r}"
        for own in fields(part)
        if not (own.metadata.get(_LATER) and getattr(part, own.name) == own.default)
    ]
    end = [text for text in (getattr(part, "spelled_end", None),) if text]
    return f"{type(part).__name__}({', '.join([*shown, *end])})"
