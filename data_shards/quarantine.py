"""Samples that cannot be read are replaced during training, counted and listed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.orders.order import Order
from data_shards.settings import InputError
from data_shards.storage.dataset import SampleError, ShardDataset
from untrusted.files import no_link

_NONE = np.empty(0, dtype=np.int64)


class Quarantine:
    """Records samples that could not be read, and stops the run above a budget.

    `suspects` [s] are left out as well: readable samples of iterations that led to a rewind.
    """

    def __init__(
        self,
        path: Path | None,
        budget: int,
        count: Callable[[], None] = lambda: None,
        suspects: NDArray[np.int64] = _NONE,
    ) -> None:
        self.suspects = suspects
        self._path, self._budget, self._count = path, budget, count
        self._known: set[int] = set()

    def add(self, sample: int, why: str) -> None:
        """Records a damaged sample once. Raises InputError above the budget."""
        if sample in self._known:
            return
        self._known.add(sample)
        self._count()
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8", opener=no_link) as file:
                file.write(json.dumps({"sample": sample, "why": why}) + "\n")
        if len(self._known) > self._budget:
            raise InputError(
                f"{len(self._known)} samples are damaged, more than data.max_quarantined = "
                f"{self._budget} (last: {why}): restore the dataset, see {self._path}"
            )


def readable(
    dataset: ShardDataset,
    order: Order,
    positions: NDArray[np.int64],
    samples: NDArray[np.int64],
    quarantine: Quarantine,
) -> tuple[NDArray[np.int64], list[bytes]]:
    """Returns the `samples` at `positions` ([b]) and their bytes, with damaged ones replaced.

    A damaged sample is replaced by the next one of the order, which depends on the data alone, so
    every world size takes the same. Suspects come in whole batches, so they are replaced at the
    order's stride: the next good sample would fill a batch with copies of itself. Raises
    InputError above the quarantine's budget.
    """
    samples, skipped = samples.copy(), np.zeros_like(positions)
    stride = order.stride(len(quarantine.suspects))

    def move(which: NDArray[np.bool_], by: int) -> None:
        skipped[which] += by
        samples[which] = order.at(positions[which], skipped[which])
        while (suspected := np.isin(samples, quarantine.suspects) & which).any():
            skipped[suspected] += stride
            samples[suspected] = order.at(positions[suspected], skipped[suspected])

    if len(quarantine.suspects):
        move(np.isin(samples, quarantine.suspects), 0)
    jpegs: list[Any] = dataset.images(samples)
    # one by one: each replacement may be damaged, too
    for i in [i for i, jpeg in enumerate(jpegs) if jpeg is None]:
        this = np.arange(len(samples)) == i
        while jpegs[i] is None:
            try:
                jpegs[i] = dataset.image(int(samples[i]))
            except SampleError as error:
                quarantine.add(int(samples[i]), str(error))
                move(this, 1)
    return samples, jpegs
