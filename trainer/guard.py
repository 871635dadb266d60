"""Decides from the recent losses whether an update may be made.

A pure function of values that are equal on every rank, so that every rank decides alike.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field

from data_shards.settings import UNDECIDING, Settings

Fault = Literal["loss", "spike", "gradient", "overflow", "weights"]
"""Why an update was not made: a loss that is not finite, one far above the recent ones, a gradient
that is not finite, or one that float16 could not hold at the present loss scale. Weights that are
not finite are found when a checkpoint is due."""
_MAD_TO_DEVIATION = 1.4826  # of normally distributed values
_LEAST_DEVIATION = 0.01  # of the median: a loss that hardly moves would make everything a spike


class GuardSettings(Settings):
    """When an update is not made, and when training goes back to a checkpoint."""

    spike: float | None = Field(default=50.0, gt=0)
    """A loss this many robust deviations (median absolute deviation × 1.48, at least 1 % of the
    median) above the median of the recent losses, since the last milestone of the learning rate, is
    treated like one that is not finite; none: any finite loss is taken."""
    window: int = Field(default=100, ge=4)
    """Recent losses that a spike is measured against; half of them must be there."""
    rewind_after: int = Field(default=5, ge=1)
    """Updates skipped in a row before the phase goes back to its last good checkpoint and leaves
    out the samples of those iterations."""
    max_rewinds: Annotated[int, UNDECIDING] = Field(default=3, ge=0)
    """Rewinds of a training phase, over all its restarts, before it ends with an error."""


def robust_score(recent: torch.Tensor, value: float) -> float:
    """How many robust deviations `value` lies above the median of `recent` [n], n ≥ 1."""
    median = float(recent.median())
    deviation = _MAD_TO_DEVIATION * float((recent - median).abs().median())
    least = max(_LEAST_DEVIATION * abs(median), torch.finfo(torch.float64).tiny)
    return (value - median) / max(deviation, least)


class Guard:
    """The recent losses and the number of updates skipped in a row, and the decisions from them."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._losses = torch.zeros(settings.window, dtype=torch.float64)
        self._counts = torch.zeros(2, dtype=torch.int64)  # losses accepted, skipped in a row

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole state, not copied: a saved state is restored by copying into these tensors."""
        return {"guard.losses": self._losses, "guard.counts": self._counts}

    @property
    def streak(self) -> int:
        """Updates skipped in a row."""
        return int(self._counts[1])

    @property
    def rewinds(self) -> bool:
        """Whether so many updates were skipped in a row that training must go back."""
        return self.streak >= self._settings.rewind_after

    def judge(self, loss: float) -> Fault | None:
        """The fault of a loss, None if there is none."""
        if not math.isfinite(loss):
            return "loss"
        spike, held = self._settings.spike, min(int(self._counts[0]), len(self._losses))
        if spike is None or held < len(self._losses) / 2:
            return None
        return "spike" if robust_score(self._losses[:held], loss) > spike else None

    def accept(self, loss: float) -> None:
        """Records the loss of an update that was made."""
        self._losses[int(self._counts[0]) % len(self._losses)] = loss
        self._counts += torch.tensor([1, 0])
        self._counts[1] = 0

    def forget(self) -> None:
        """Losses from now on have nothing to do with those before."""
        self._counts[0] = 0

    def reject(self) -> None:
        """Records that an update was skipped."""
        self._counts[1] += 1
