"""Which images a learning step trains on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.splits.benchmark import Benchmark

Ids = NDArray[np.int64]


class ImageSource(Protocol):
    """One source of training images; frozen dataclasses, so that recipes can be compared."""

    @property
    def every_identity(self) -> bool:
        """Whether all images of every identity so far are among its images."""

    def samples(self, benchmark: Benchmark, step: int) -> Ids:
        """The dataset rows [n] of its images at learning step `step`."""

    def count(self, images: Sequence[int], step: int) -> int:
        """How many there are, where learning step t brings images[t] new ones."""


@dataclass(frozen=True)
class NewImages:
    """The images of the step's own identities."""

    every_identity: ClassVar = False

    def samples(self, benchmark: Benchmark, step: int) -> Ids:
        return benchmark.step_samples(step, all_so_far=False)

    def count(self, images: Sequence[int], step: int) -> int:
        return images[step]


@dataclass(frozen=True)
class AllImages:
    """The images of every step so far, as an upper bound and backward-compatible training see."""

    every_identity: ClassVar = True

    def samples(self, benchmark: Benchmark, step: int) -> Ids:
        return benchmark.step_samples(step, all_so_far=True)

    def count(self, images: Sequence[int], step: int) -> int:
        return sum(images[: step + 1])
