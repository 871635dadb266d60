"""The groups of classes whose exemplars are learned together: which there are, and their images."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.counter_rng import bits, stream_key
from data_shards.pipeline import ImageStream, PipelineSettings, Request, image_size, resized
from data_shards.storage.dataset import ShardDataset
from launch.phases.exemplars import has_images
from launch.phases.kind import Step
from launch.runs.run import Chain, Run
from trainer.methods.images import Exemplars
from trainer.mnemonics.optimisation import Group, Pool, Side, halves, updates
from trainer.mnemonics.settings import MnemonicsSettings

Ids = NDArray[np.int64]
_BATCH = 256
"""Images decoded at a time; no result depends on it."""


@dataclass(frozen=True)
class Unit:
    """Classes whose exemplars are optimised together, on one rank: rows first <= r < last."""

    first: int
    last: int
    old: bool
    """Of earlier steps: their exemplars are adjusted."""

    @property
    def name(self) -> str:
        """Names its file, and what is drawn for it."""
        return f"{'adjusted' if self.old else 'learned'}-{self.first:05d}-{self.last:05d}"


def units_of(at: Step, want: Exemplars) -> list[Unit]:
    """New classes' groups, then old ones', by row; as even as whole classes allow."""
    benchmark = at.run.benchmark
    old, last = benchmark.rows_before(at.number), benchmark.row_ends[at.number]
    new = want.choose == "mnemonics" and has_images(at)
    spans = [(old, last, False)] * new + [(0, old, True)] * (want.adjust and at.number > 0)
    units = []
    for first, end, adjusted in spans:
        number = -(-(end - first) // want.learning.classes)
        ends = np.linspace(first, end, number + 1).round().astype(int).tolist()
        units += [Unit(*both, adjusted) for both in pairwise(ends)]
    return units


def expected_updates(at: Step, want: Exemplars, unit: Unit) -> int:
    """How many updates a unit takes, if all classes have as many images."""
    benchmark, how = at.run.benchmark, want.learning
    classes, old = unit.last - unit.first, benchmark.rows_before(at.number)
    share = want.share(benchmark.row_ends[at.number])
    if unit.old:
        sizes, others = [share // 2, share - share // 2], classes < old
    else:
        new = benchmark.row_ends[at.number] - old
        images = len(benchmark.steps[at.number]) // new
        sizes, others = [min(images, how.images)], classes < new
    return how.epochs * sum(updates(size * classes, others, how) for size in sizes)


class Groups:
    """The images that groups are made of, as the network is shown whole ones: no augmentation, and
    nothing cut off, since training cuts its own parts of what is stored."""

    def __init__(
        self, run: Run, chain: Chain, step: int, how: MnemonicsSettings, drawn: Path
    ) -> None:
        """`drawn`: the memory of the `step`, as it was chosen."""
        self._run, self._seed, self._step, self._how = run, chain.seed, step, how
        self._memory = ShardDataset.open(drawn)
        data = run.config.data.model_copy(update={"centre": None})
        self._settings = resized(data, self._memory, image_size(run.dataset, data))

    @cached_property
    def _rows(self) -> Ids:
        """The classifier row of each exemplar."""
        row_of = {name: row for row, name in enumerate(self._run.benchmark.names.tolist())}
        return np.array([row_of[name] for name in self._memory.names.tolist()])[
            self._memory.identity
        ]

    def group(self, unit: Unit, device: torch.device) -> tuple[Group, Ids]:
        """A unit's images, and the samples [n] of the memory that its exemplars are."""
        rows, old = self._rows, self._run.benchmark.rows_before(self._step)
        own = np.flatnonzero((rows >= unit.first) & (rows < unit.last))
        alike = np.flatnonzero((rows < old) if unit.old else (rows >= old))
        others = self._some(np.setdiff1d(alike, own), self._memory, self._most(), unit)
        exemplars = self._pool(self._memory, own, rows[own], device)
        beside = self._pool(self._memory, others, rows[others], device)
        if unit.old:
            sides = self._by_halves(own, others, exemplars, beside)
        else:
            sides = (self._by_data(unit, len(own), beside, device),)
        sides = tuple(s for s in sides if len(s.learned) and len(s.outer))
        return Group(exemplars.at(slice(None)), sides, unit.name), own

    def _most(self) -> int:
        """How many images of other classes are held for a group: as many as its own, at most."""
        return self._how.images * self._how.classes

    def _by_halves(self, own: Ids, others: Ids, exemplars: Pool, beside: Pool) -> tuple[Side, ...]:
        """Each half of old exemplars, by the other one."""
        keys, seed = self._memory.key_hashes, self._seed
        first = halves(keys, self._rows, seed)
        sides = []
        for half in (first, ~first):
            trained, judging = (
                Pool(beside.images[chosen], beside.labels[chosen])
                for chosen in (torch.from_numpy(half[others]), torch.from_numpy(~half[others]))
            )
            at = np.flatnonzero(half[own]), np.flatnonzero(~half[own])
            sides.append(Side(at[0], trained, at[1], judging))
        return tuple(sides)

    def _by_data(self, unit: Unit, count: int, beside: Pool, device: torch.device) -> Side:
        """All exemplars of new classes, by the step's own images."""
        dataset, benchmark = self._run.dataset, self._run.benchmark
        samples = benchmark.steps[self._step]
        row_of = benchmark.row_of_identity[dataset.identity]
        rows, most = row_of[samples], self._how.images
        own = [
            self._some(samples[rows == row], dataset, most, unit)
            for row in range(unit.first, unit.last)
        ]
        inside = (rows >= unit.first) & (rows < unit.last)
        others = self._some(samples[~inside], dataset, self._most(), unit)
        outer, beyond = (_whole(dataset, chosen) for chosen in (np.concatenate(own), others))
        return Side(
            learned=np.arange(count),
            others=beside,
            outer=self._pool(dataset, outer, row_of[outer], device),
            outer_others=self._pool(dataset, beyond, row_of[beyond], device),
        )

    def _some(self, samples: Ids, dataset: ShardDataset, most: int, unit: Unit) -> Ids:
        """At most so many of `samples` [n], at random by their keys: in that order, whatever theirs
        is."""
        key = stream_key(self._seed, "mnemonics data", self._step, unit.name)
        return samples[np.argsort(bits(key, dataset.key_hashes[samples]), kind="stable")[:most]]

    def _pool(self, dataset: ShardDataset, samples: Ids, rows: Ids, device: torch.device) -> Pool:
        """Some of a dataset's images, of classifier `rows`."""
        settings = self._settings
        height, width = image_size(dataset, settings)
        images = torch.empty(len(samples), 3, height, width, dtype=torch.uint8)
        first = 0
        for own in _decoded(dataset, samples, settings):
            images[first : first + len(own)] = own
            first += len(own)
        return Pool(images.to(device), torch.from_numpy(rows).to(device))


def _whole(dataset: ShardDataset, samples: Ids) -> Ids:
    """Those of `samples` [n] that are not damaged: others are passed over, as training replaces
    them."""
    return samples[[image is not None for image in dataset.images(samples)]]


def _decoded(
    dataset: ShardDataset, samples: Ids, settings: PipelineSettings
) -> Iterator[torch.Tensor]:
    """The images of `samples` in their order, whole. Raises InputError for a damaged one."""
    if not len(samples):
        return
    parts = (samples[first : first + _BATCH] for first in range(0, len(samples), _BATCH))
    requests = (Request.plain(dataset, part) for part in parts)
    for _, images in ImageStream(dataset, requests, _BATCH, settings, augmented=False):
        yield images
