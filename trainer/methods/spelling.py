"""How a recipe's parts are spelled in fingerprints: once released, the same for ever.

A fingerprint decides whether finished work is done again, so nobody's runs may be trained anew
because a field was renamed or added. Terms used to be spelled by Python's ``repr``; this text is
what that gave, whatever the fields are called by now.
"""

from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any

from trainer.methods.wants import Answers, ClassMeans, FrozenRows, Want

_AS = "spelled"
_LATER = "added_later"
_NEVER = "decides_nothing"


def renamed(spelled: str, **options: Any) -> Any:
    """A dataclass field that fingerprints call `spelled`; `options` are those of ``field``."""
    return field(metadata={_AS: spelled}, **options)


def added(default: Any, **options: Any) -> Any:
    """A dataclass field that fingerprints name only where it differs from its `default`.

    For fields added to a released Term: runs of before did as the default says. `options` are
    those of ``field``.
    """
    return field(default=default, metadata={_LATER: True}, **options)


def unspelled(default: Any, **options: Any) -> Any:
    """A dataclass field that no result depends on, and that no fingerprint names."""
    return field(default=default, metadata={_NEVER: True}, **options)


def spelled(part: Any) -> str:
    """A Term or image source as fingerprints have it: ``Name(field=value, ...)``.

    A class whose released text ended in more than its present fields keeps that in ``spelled_end``.
    """
    shown = [
        f"{own.metadata.get(_AS, own.name)}={getattr(part, own.name)!r}"
        for own in fields(part)
        if not own.metadata.get(_NEVER)
        and not (own.metadata.get(_LATER) and getattr(part, own.name) == own.default)
    ]
    end = [text for text in (getattr(part, "spelled_end", None),) if text]
    return f"{type(part).__name__}({', '.join([*shown, *end])})"


def spelled_needs(wants: Iterable[Want] = (), trained_rows: bool = False) -> str:
    """`wants`, one of each class, as fingerprints have them: by a class that is no more.

    `trained_rows`: whether a Term trains the old identities' rows. A want that there was not at
    the time adds nothing: what its phase makes has a fingerprint of its own.
    """
    have: dict[type[Want], Any] = {type(want): want for want in wants}
    answers = have.get(Answers, Answers())
    values = {
        "embeddings": answers.embeddings,
        "neighbours": answers.top_k,
        "trained_rows": trained_rows,
        "classifier": FrozenRows in have,
        "prototypes": ClassMeans in have,
    }
    return f"Needs({', '.join(f'{name}={value!r}' for name, value in values.items())})"
