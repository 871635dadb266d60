"""Intervals of means over seeds, by Student's t."""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

CONFIDENCE = 0.95


@cache
def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """What Student's t with `freedom` degrees of freedom is within, with probability `confidence`:
    12.7 for 1, 4.3 for 2, 2.78 for 4, falling to the normal distribution's 1.96.

    Found by bisection of the angle atan(t / sqrt(freedom)), in which the probability is a finite
    sum (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for number in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (number - 1) / number
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + (sine * total if freedom > 1 else 0.0))


def half_width(values: Sequence[float]) -> float | None:
    """How far the mean of `values` may be off, at a confidence of 95 %; None of a single one."""
    count = len(values)
    if count < 2:
        return None
    return student_t(count - 1) * statistics.stdev(values) / math.sqrt(count)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Where the share is of what `count` independent trials are drawn from, at a confidence of
    95 %, if `share` of them succeeded (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    half /= 1 + z * z / count
    return max(0.0, middle - half), min(1.0, middle + half)


class Difference(NamedTuple):
    """One thing minus another, of the same seeds."""

    mean: float
    half_width: float | None
    """Half of the 95 % interval of the mean; None of a single seed."""
    seeds: int

    def scaled(self, factor: float) -> "Difference":
        """It times `factor`, such as 100 for points of a percent."""
        half = None if self.half_width is None else factor * self.half_width
        return Difference(factor * self.mean, half, self.seeds)

    def written(self) -> str:
        """It for people, such as ``+1.2 [-0.3, +2.7]``."""
        if self.half_width is None:
            return f"{self.mean:+,.1f}"
        low, high = self.mean - self.half_width, self.mean + self.half_width
        return f"{self.mean:+,.1f} [{low:+,.1f}, {high:+,.1f}]"

    def values(self) -> dict[str, float | int]:
        """It as plain values."""
        found: dict[str, float | int] = {"mean": self.mean, "seeds": self.seeds}
        if self.half_width is not None:
            low, high = self.mean - self.half_width, self.mean + self.half_width
            found |= {"low": low, "high": high}
        return found


def paired(these: Mapping[int, float], those: Mapping[int, float]) -> Difference | None:
    """`these` minus `those`, by seed, over the seeds that both have; None where there is none.

    Seeds share step 0's model and the order of images: what they do to both cancels.
    """
    differences = [these[seed] - those[seed] for seed in sorted(these.keys() & those.keys())]
    if not differences:
        return None
    return Difference(statistics.fmean(differences), half_width(differences), len(differences))
