"""ROC: the share of genuine scores accepted against the share of impostor scores accepted.

A score is accepted where it is at least the threshold. Nothing is interpolated: the true accept
rate at a false accept rate f is the highest that some threshold reaches with a false accept rate
of at most f. The best threshold is always a genuine score, so that counting the impostors between
neighbouring genuine scores is exact: impostors may come in blocks, in any order, from any process.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FALSE_ACCEPT_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
Scores = NDArray[np.floating]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Roc:
    """Accepted scores at the thresholds of n genuine scores, from the strictest."""

    false: Counts
    """[n] impostor scores accepted at each. The i-th, from 1, accepts i genuine scores; of several
    equal scores the last counts."""
    genuine: int
    """Genuine trials in all."""
    impostors: int
    """Impostor trials in all."""

    def at(self, rates: Iterable[float]) -> NDArray[np.float64]:
        """The true accept rate at each false accept rate; 0 where no threshold is so strict."""
        wanted = np.asarray(list(rates), dtype=np.float64)
        # 1e-3 of 3,000 impostors is 3, though the product in floating point may be 2.999...
        allowed = np.floor(wanted * self.impostors * (1 + 1e-12))
        place = np.searchsorted(self.false, allowed, side="right")
        return place / self.genuine

    def measured(self, rates: Iterable[float] = FALSE_ACCEPT_RATES) -> dict[str, float]:
        """`at` by rate, for rates of at least one impostor: smaller ones cannot be measured."""
        able = [rate for rate in rates if rate * self.impostors * (1 + 1e-12) >= 1]
        return {f"{rate:g}": float(v) for rate, v in zip(able, self.at(able), strict=True)}

    def curve(self) -> list[tuple[float, float]]:
        """(false accept rate, true accept rate) at `log_rates`, for drawing."""
        rates = log_rates(self.impostors)
        return [(float(f), float(t)) for f, t in zip(rates, self.at(rates), strict=True)]


def log_rates(impostors: int) -> NDArray[np.float64]:
    """At most 100 false accept rates, evenly spaced on a logarithmic axis, from one impostor to
    all of them."""
    return np.unique(np.geomspace(1, impostors, 100).round()) / impostors


def impostors_between(impostor: Scores, genuine: Scores) -> Counts:
    """[n + 1] impostors of one block: below all n ascending `genuine` scores, then up to each next.

    Adding the counts of all blocks gives `roc_from_counts` its `counts`.
    """
    _check(impostor, "impostor")
    above = np.searchsorted(genuine, impostor, side="right")
    return np.bincount(above, minlength=len(genuine) + 1)


def roc_from_counts(genuine: Scores, counts: Counts, misses: int = 0) -> Roc:
    """The ROC of ascending `genuine` scores [n] and the impostors between them, [n + 1].

    `misses` are genuine trials that no threshold accepts. Raises ValueError when a kind is empty.
    """
    _check(genuine, "genuine")
    impostors, trials = int(counts.sum()), len(genuine) + misses
    if not trials or not impostors:
        raise ValueError(
            f"{trials} genuine and {impostors} impostor scores: a ROC needs both kinds"
        )
    return Roc(counts[:0:-1].cumsum(), trials, impostors)


def roc(score: Scores, same: NDArray[np.bool_]) -> Roc:
    """The ROC of scores [p], larger where more alike, of which `same` [p] are genuine.

    Raises ValueError for a score that is NaN, and when only one kind is there.
    """
    genuine = np.sort(score[same])
    return roc_from_counts(genuine, impostors_between(score[~same], genuine))


def _check(score: Scores, kind: str) -> None:
    if np.isnan(score).any():
        raise ValueError(f"{int(np.isnan(score).sum())} {kind} scores are NaN")
