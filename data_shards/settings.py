"""The base of every configuration model, and the error type that is meant for users."""

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from untrusted.errors import InputError

__all__ = [
    "UNDECIDING",
    "Bytes",
    "InputError",
    "Settings",
    "Side",
    "Size",
    "parse_bytes",
    "parse_side",
    "parse_size",
]

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


_PIXELS = r"([1-9]\d{0,5})x([1-9]\d{0,5})"
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 1 << 10 * power for power, unit in enumerate("kMGT", 1)}
_AMOUNT = r"(\d+(?:\.\d+)?) ?([kKMGT]?i?)B"


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from HxW. Raises InputError."""
    if not (found := re.fullmatch(_PIXELS, text)):
        raise InputError(f"size {text!r}: write height x width in pixels, such as 112x112")
    return int(found[1]), int(found[2])


def parse_side(text: str) -> int:
    """The side of a square from HxH, or from one number. Raises InputError."""
    height, width = parse_size(text if "x" in text else f"{text}x{text}")
    if height != width:
        raise InputError(f"size {text!r}: these images are square, write such as 32x32")
    return height


def parse_bytes(text: str) -> int:
    """Bytes from a number with a unit, 20GB or 1.5 GiB. Raises InputError."""
    found = re.fullmatch(_AMOUNT, text)
    unit = found[2].replace("K", "k") if found else ""
    if not found or unit not in _UNITS:
        raise InputError(f"amount {text!r}: write a number of bytes, or one with a unit: 20GB")
    return round(float(found[1]) * _UNITS[unit])


def _text_by(parse: Callable[[str], Any]) -> BeforeValidator:
    return BeforeValidator(lambda value: parse(value) if isinstance(value, str) else value)


Size = Annotated[
    tuple[int, int],
    _text_by(parse_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": f"^{_PIXELS}$"},
                {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
            ]
        }
    ),
]
"""Height and width, pixels: HxW, as everywhere, or a list of the two."""
Side = Annotated[
    int,
    _text_by(parse_side),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": f"^{_PIXELS}$"}, {"type": "integer"}]}),
]
"""The side of square images, pixels: HxH, as sizes are written everywhere, or one number."""
Bytes = Annotated[
    int,
    _text_by(parse_bytes),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": f"^{_AMOUNT}$"}, {"type": "integer"}]}),
]
"""An amount of memory or disk: 20GB, 512 MiB, or a number of bytes."""
