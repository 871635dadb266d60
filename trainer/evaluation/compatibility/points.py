"""Operating points: the figures to measure, and their names in configurations and commands."""

from dataclasses import dataclass

from data_shards.settings import InputError

_PLAIN, _AT_RATE = ("top1", "map"), ("tar", "tpir")
DEFAULT = ("top1", "tar@1e-2")
"""Used if none is given, as far as the test can measure them."""


@dataclass(frozen=True)
class Point:
    """A figure, and the rate of false accepts at which it is read."""

    name: str
    """As the user wrote it."""
    kind: str
    """``top1``, ``map``, ``tar`` or ``tpir``."""
    rate: float = 1.0

    @classmethod
    def parse(cls, name: str) -> "Point":
        """Parses a name such as top1 or tar@1e-3. Raises InputError."""
        kind, at, rate = name.partition("@")
        if kind in _PLAIN and not at:
            return cls(name, kind)
        try:
            value = float(rate)
        except ValueError:
            value = 0.0
        if kind not in _AT_RATE or not 0 < value < 1:
            raise InputError(
                f"{name!r} is no operating point: write top1, map, tar@RATE or tpir@RATE, with a "
                "rate between 0 and 1, such as tar@1e-3"
            )
        return cls(name, kind, value)
