"""Figures of a test as functions of weights on its identities: for the estimate and its bootstrap.

`weights` are [r, n]: how often each of n query identities is drawn in each of r resamples; a row of
ones gives the figure itself. Every trial belongs to the identity of its query.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Weights = NDArray[np.integer]
_HELD = 2**22  # weights of single trials held at once


class Figure(Protocol):
    """A measure of a model between 0 and 1, larger being better."""

    def values(self, weights: Weights) -> Floats:
        """[r] its value under each row of `weights` [r, n]; NaN where no trial has any weight."""
        ...


@dataclass(frozen=True)
class Share:
    """The mean of a value of each trial: rank-1, mAP."""

    identity: Ids
    """[k] the identity that each trial belongs to."""
    value: NDArray[np.generic]
    """[k] the value of each trial."""

    def values(self, weights: Weights) -> Floats:
        n = weights.shape[1]
        total = np.bincount(self.identity, self.value, minlength=n)
        count = np.bincount(self.identity, minlength=n).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return (weights @ total) / (weights @ count)


@dataclass(frozen=True)
class Accepted:
    """The share of genuine scores accepted at the threshold that accepts few enough impostors.

    As `roc.Roc.at`, with weights: the highest share of genuine scores that some threshold accepts
    together with at most a share `rate` of the impostors. The threshold is found anew under each
    row of weights.
    """

    genuine: NDArray[np.floating]
    """[k] larger is more alike; minus infinity is never accepted."""
    genuine_identity: Ids
    impostor: NDArray[np.floating]
    impostor_identity: Ids
    rate: float

    def thresholds(self, weights: Weights) -> Floats:
        """[r] the best impostor score that is one too many: genuine scores *above* it are accepted.

        Only few impostors decide a threshold, so the best are sorted, and twice as many where these
        do not suffice.
        """
        count = np.bincount(self.impostor_identity, minlength=weights.shape[1])
        allowed = (weights @ count) * (self.rate * (1 + 1e-12))  # as `Roc.at` has it
        held = 100 + int(2 * self.rate * len(self.impostor))
        while True:
            found = self._among_best(min(held, len(self.impostor)), weights, allowed)
            if found is not None:
                return found
            held *= 2

    def _among_best(
        self, held: int, weights: Weights, allowed: NDArray[np.floating]
    ) -> Floats | None:
        """The thresholds among the `held` best impostors; None when some lie below them."""
        best = np.argpartition(-self.impostor, held - 1)[:held]
        best = best[np.argsort(-self.impostor[best], kind="stable")]
        identity, scores = self.impostor_identity[best], self.impostor[best]
        found = np.full(len(weights), -np.inf)
        rows = max(1, _HELD // held)
        for start in range(0, len(weights), rows):
            some = slice(start, start + rows)
            above = np.cumsum(weights[some][:, identity], axis=1) > allowed[some, None]
            reached = above[:, -1]
            if not reached.all() and held < len(self.impostor):
                return None
            found[some] = np.where(reached, scores[above.argmax(axis=1)], -np.inf)
        return found

    def values(self, weights: Weights) -> Floats:
        n = weights.shape[1]
        threshold = self.thresholds(weights)
        count = np.bincount(self.genuine_identity, minlength=n)
        # above the highest threshold all resamples accept a score, below the lowest none does: only
        # scores in between are compared with each
        sure = self.genuine > threshold.max()
        accepted = weights @ np.bincount(self.genuine_identity[sure], minlength=n)
        unsure = np.flatnonzero(~sure & (self.genuine > threshold.min()))
        rows = max(1, _HELD // max(1, len(unsure)))
        for start in range(0, len(weights), rows):
            some = slice(start, start + rows)
            above = self.genuine[unsure] > threshold[some, None]
            accepted[some] += (weights[some][:, self.genuine_identity[unsure]] * above).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return accepted / (weights @ count)


@dataclass(frozen=True)
class MeanOf:
    """The mean of several figures, one for each gallery."""

    figures: Sequence[Figure]

    def values(self, weights: Weights) -> Floats:
        return np.mean([figure.values(weights) for figure in self.figures], axis=0)
