"""What every configuration model shares, and the error type that is meant for people."""

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from untrusted.errors import InputError

__all__ = ["InputError", "Settings", "Size", "parse_size"]


class Settings(BaseModel):
    """Base of every configuration model: unknown keys are errors, values do not change once read,
    and the docstring under a field is its documentation (``perennial config`` prints it)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from HxW. Raises InputError."""
    if not (found := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)):
        raise InputError(f"size {text!r}: write height x width in pixels, such as 112x112")
    return int(found[1]), int(found[2])


Size = Annotated[
    tuple[int, int], BeforeValidator(lambda v: parse_size(v) if isinstance(v, str) else v)
]
"""Height and width, pixels: HxW, as commands take it, or a list of the two."""
