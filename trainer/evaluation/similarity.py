"""How alike two representations of the same samples are, by canonical correlations: SVCCA.

Raghu, Gilmer, Yosinski and Sohl-Dickstein 2017, "SVCCA: singular vector canonical correlation
analysis for deep learning dynamics and interpretability".
"""

from dataclasses import dataclass

import torch

KEPT_VARIANCE = 0.99
"""Share of each representation's variance that is compared; what is below is taken for noise."""


@dataclass(frozen=True)
class Similarity:
    """Two representations compared."""

    mean: float
    """The mean canonical correlation, between 0 and 1."""
    kept: tuple[int, int]
    """How many directions of each hold its variance."""
    samples: int

    @property
    def floor(self) -> float:
        """What independent representations are found to have, on n samples: never 0.

        Squared canonical correlations of independent normal data of p and q <= p dimensions have
        the mean p / (n - 1): a random space of q dimensions keeps this share of its length in one
        of p among n - 1. Its root is an upper bound of the mean correlation. Neighbouring places
        of one image are no independent samples: of them, it is too low.
        """
        return min(1.0, max(self.kept) / max(1, self.samples - 1)) ** 0.5


class Moments:
    """First and second moments of two representations, summed over batches in float64.

    All that SVCCA needs, so that no number of samples has to be held, or drawn from.
    """

    def __init__(self, left: int, right: int) -> None:
        """For representations of `left` and `right` numbers."""
        self._sizes = left, right
        self._sums = torch.zeros(left + right, dtype=torch.float64)
        self._products = torch.zeros(left + right, left + right, dtype=torch.float64)
        self._origin: torch.Tensor | None = None
        self.samples = 0

    def add(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Counts samples in: `left` [n, p] and `right` [n, q]."""
        both = torch.cat([left, right], dim=1).double()
        if self._origin is None:  # far from the mean, differences of large sums would lose digits
            self._origin = both.mean(dim=0)
        both = both - self._origin
        self._sums += both.sum(dim=0)
        self._products.addmm_(both.T, both)
        self.samples += len(both)

    def covariances(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Those of the left [p, p], of the right [q, q], and between them [p, q], times n."""
        about_mean = self._products - torch.outer(self._sums, self._sums) / max(1, self.samples)
        left = self._sizes[0]
        return about_mean[:left, :left], about_mean[left:, left:], about_mean[:left, left:]


def svcca(moments: Moments, variance: float = KEPT_VARIANCE) -> Similarity:
    """The mean canonical correlation of what holds `variance` of each representation.

    Each is projected on its fewest principal directions with that share of its variance; the
    canonical correlations of the projections, min(p', q') of them, are averaged. Where one never
    changes, nothing correlates with it: 0.
    """
    left, right, between = moments.covariances()
    whiten_left, whiten_right = _whitening(left, variance), _whitening(right, variance)
    kept = whiten_left.shape[1], whiten_right.shape[1]
    correlations = torch.linalg.svdvals(whiten_left.T @ between @ whiten_right).clamp(0, 1)
    mean = float(correlations.mean()) if min(kept) else 0.0
    return Similarity(mean, kept, moments.samples)


def _whitening(covariance: torch.Tensor, variance: float) -> torch.Tensor:
    """[p, p'] what makes data with `covariance` [p, p] uncorrelated and of variance 1.

    The directions kept have eigenvalues of at least (1 - variance) / p of them all together, far
    above float64's rounding; hence no singular values of the data itself are needed.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = values.sum()
    if not total > 0:
        return vectors[:, :0]
    reached = values.cumsum(0) >= variance * total * (1 - 1e-12)
    kept = int(reached.int().argmax()) + 1
    return vectors[:, :kept] / values[:kept].sqrt()
