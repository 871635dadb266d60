"""The base of every configuration model, and the error type that is meant for users."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from untrusted.errors import InputError

__all__ = ["UNDECIDING", "InputError", "Settings", "Size", "parse_size"]

UNDECIDING = object()
"""Marks a field, as in ``Annotated[int, UNDECIDING]``, that changes no result beyond float error.

Such a field is not part of fingerprints and may be changed when a run is continued."""


class Settings(BaseModel):
    """Base of every configuration model: unknown keys are errors, values do not change once read,
    and the docstring under a field is its documentation (``perennial config`` prints it)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    def deciding(self) -> dict[str, Any]:
        """The plain values that results depend on: all fields but those marked UNDECIDING."""
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            if any(mark is UNDECIDING for mark in field.metadata):
                del values[name]
            else:
                values[name] = _deciding(getattr(self, name), values[name])
        return values


def _deciding(value: Any, dumped: Any) -> Any:
    """`dumped`, the plain values of `value`, with UNDECIDING fields of settings within removed."""
    if isinstance(value, Settings):
        return value.deciding()
    if isinstance(value, dict):
        return {str(key): _deciding(inner, dumped[str(key)]) for key, inner in value.items()}
    return dumped


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from HxW. Raises InputError."""
    if not (found := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)):
        raise InputError(f"size {text!r}: write height x width in pixels, such as 112x112")
    return int(found[1]), int(found[2])


Size = Annotated[
    tuple[int, int], BeforeValidator(lambda v: parse_size(v) if isinstance(v, str) else v)
]
"""Height and width, pixels: HxW, as commands take it, or a list of the two."""
