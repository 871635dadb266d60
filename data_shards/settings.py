"""What every configuration model shares, and the error type that is meant for people."""

from pydantic import BaseModel, ConfigDict

from untrusted.errors import InputError

__all__ = ["InputError", "Settings"]


class Settings(BaseModel):
    """Base of every configuration model: unknown keys are errors, values do not change once read,
    and the docstring under a field is its documentation (``perennial config`` prints it)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
