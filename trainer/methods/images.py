"""Which images a learning step trains on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.splits.benchmark import Benchmark
from trainer.methods.spelling import unspelled
from trainer.mnemonics.settings import MnemonicsSettings

Ids = NDArray[np.int64]
Choice = Literal["herding", "random", "mnemonics"]
"""How exemplars are chosen. herding: one by one, so that the mean of those chosen comes nearest to
their identity's mean embedding. random: by a hash of seed and sample. mnemonics: so, too, and then
their pixels are learned (`trainer.mnemonics`)."""


class ImageSource(Protocol):
    """One source of training images; frozen dataclasses, so that recipes can be compared."""

    @property
    def every_identity(self) -> bool:
        """Whether all images of every identity so far are among its images."""

    def samples(self, benchmark: Benchmark, step: int) -> Ids:
        """The dataset rows [n] of its images at learning step `step`."""

    def count(self, images: Sequence[int], rows: Sequence[int], step: int) -> int:
        """How many there are, where learning step t brings images[t] new ones, and rows[t]
        identities are learned after it."""


@dataclass(frozen=True)
class NewImages:
    """The images of the step's own identities."""

    every_identity: ClassVar = False

    def samples(self, benchmark: Benchmark, step: int) -> Ids:
        return benchmark.step_samples(step, all_so_far=False)

    def count(self, images: Sequence[int], rows: Sequence[int], step: int) -> int:
        return images[step]


@dataclass(frozen=True)
class AllImages:
    """The images of every step so far, as an upper bound and backward-compatible training see."""

    every_identity: ClassVar = True

    def samples(self, benchmark: Benchmark, step: int) -> Ids:
        return benchmark.step_samples(step, all_so_far=True)

    def count(self, images: Sequence[int], rows: Sequence[int], step: int) -> int:
        return sum(images[: step + 1])


@dataclass(frozen=True)
class Exemplars:
    """The memory: a few images of each identity of earlier steps, chosen by the step that learned
    it. Of `per_class` and `total`, one is a number."""

    per_class: int | None
    """m, exemplars of each identity."""
    total: int | None
    """K, exemplars in all, shared equally over the identities so far."""
    choose: Choice
    learning: MnemonicsSettings = unspelled(MnemonicsSettings())
    """How pixels are learned, where they are: the phase that does it has these in its fingerprint,
    and a training has that of the phase."""
    adjust: bool = unspelled(False)
    """Whether those of earlier steps are learned anew after each step."""
    every_identity: ClassVar = False

    def share(self, identities: int) -> int:
        """Exemplars of each of so many identities."""
        if self.per_class is not None:
            return self.per_class
        assert self.total is not None
        return self.total // max(1, identities)

    def samples(self, benchmark: Benchmark, step: int) -> Ids:
        return benchmark.exemplars

    def count(self, images: Sequence[int], rows: Sequence[int], step: int) -> int:
        old = rows[step - 1] if step else 0
        return min(self.share(old) * old, sum(images[:step]))
