"""Splits identities into learning steps and fixed test sets: functions of dataset and settings."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import shuffled, stream_key
from data_shards.settings import InputError
from data_shards.splits.benchmark_file import BenchmarkFile, place
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.classified import classified_samples
from data_shards.splits.drawing import (
    THERE,
    by_image,
    choose,
    query_and_gallery,
    seen_split,
    testable,
    verification_pairs,
    with_role,
)
from data_shards.splits.known import KnownIdentities, Names
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.joined import JoinedDataset

Ids = NDArray[np.int64]
_LEFT = "are left beside those that are tested on: lower it or benchmark.test_identities"


@dataclass(frozen=True)
class Benchmark:
    """The training samples of each learning step, and the test sets. Samples are dataset rows."""

    steps: tuple[Ids, ...]
    """The training samples of each learning step."""
    row_of_identity: Ids
    """[identities of the dataset] the classifier row of each, or -1 for those not trained on."""
    row_ends: tuple[int, ...]
    """Classifier rows after each learning step; step t owns row_ends[t-1] <= row < row_ends[t]."""
    query: Ids
    """Samples that are searched for."""
    gallery: Ids
    """Samples that are searched in."""
    pairs: Ids
    """[P, 2] pairs to verify, in fold order."""
    same: NDArray[np.bool_]
    """[P] whether a pair shows one identity."""
    folds: Ids
    """[P] the fold of each pair; no identity is in two folds."""
    seen_query: Ids
    """One held-out sample of each measured identity of step 0."""
    seen_gallery: Ids
    """The trained samples of those identities."""
    names: Names
    """[row_ends[-1]] the identity of each classifier row."""
    classified: tuple[Ids, ...] = ()
    """The test samples of each learning step's own identities, for accuracy task by task; none
    unless a benchmark file names them, or `BenchmarkSettings.classified` says which they are."""
    exemplars: Ids = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The samples of the memory of earlier steps, where it is joined to the dataset; see
    `with_exemplars`."""
    by_image: bool = False
    """Whether queries were drawn image by image: cameras then play no part in the search."""

    def rows_before(self, step: int) -> int:
        """C_old at learning step `step`."""
        return self.row_ends[step - 1] if step else 0

    def with_exemplars(self, data: JoinedDataset) -> "Benchmark":
        """This benchmark of `data`, whose second part holds exemplars of earlier steps' identities.

        Raises InputError where it holds one of an identity that has no classifier row.
        """
        first = len(data.parts[0])
        rows = self._rows_of(data.names[len(self.row_of_identity) :].tolist())
        rows = np.concatenate([self.row_of_identity, rows])
        exemplars = np.arange(first, len(data), dtype=np.int64)
        self._refuse_unknown(data, exemplars, rows, data.parts[1].location)
        return replace(self, row_of_identity=rows, exemplars=exemplars)

    def of_memory(self, memory: ShardDataset, step: int) -> "Benchmark":
        """This benchmark of the exemplars alone that learning step `step` leaves, as its images.

        Raises InputError where there is one of an identity that has no classifier row.
        """
        rows = self._rows_of(memory.names.tolist())
        samples = np.arange(len(memory), dtype=np.int64)
        self._refuse_unknown(memory, samples, rows, memory.location)
        steps = tuple(
            samples if number == step else samples[:0] for number in range(len(self.steps))
        )
        return replace(self, steps=steps, row_of_identity=rows)

    def of_rows(self, rows: Ids, identity: Ids, samples: Ids, step: int) -> "Benchmark":
        """This benchmark of some classes alone, which learning step `step` learns by itself: of the
        classifier `rows` [t], whose new numbers are 0 to t - 1 in that order.

        `identity` is that of each of the dataset's samples, of which the step has those among
        `samples` that are of these classes.
        """
        number = np.full(self.row_ends[-1], -1, dtype=np.int64)
        number[rows] = np.arange(len(rows))
        known = self.row_of_identity >= 0
        row_of = np.where(known, number[np.where(known, self.row_of_identity, 0)], -1)
        own = samples[row_of[identity[samples]] >= 0]
        none = samples[:0]
        return replace(
            self,
            steps=tuple(own if t == step else none for t in range(len(self.steps))),
            row_of_identity=row_of,
            row_ends=(len(rows),) * len(self.row_ends),
            names=self.names[rows],
            exemplars=none,
        )

    def _rows_of(self, names: Sequence[str]) -> Ids:
        """[n] the classifier rows of identities, or -1."""
        row_of = {name: row for row, name in enumerate(self.names.tolist())}
        return np.array([row_of.get(name, -1) for name in names], dtype=np.int64)

    @staticmethod
    def _refuse_unknown(
        data: ShardDataset | JoinedDataset, exemplars: Ids, rows: Ids, location: str
    ) -> None:
        """Raises InputError for an exemplar whose identity has no row."""
        unknown = exemplars[rows[data.identity[exemplars]] < 0]
        if len(unknown):
            raise InputError(
                f"{location} holds an exemplar of {data.names[data.identity[unknown[0]]]!r}, which "
                "no learning step has learned: it is another run's"
            )

    def step_samples(self, step: int, all_so_far: bool) -> Ids:
        """The samples of `step`, or of every step up to it."""
        return np.concatenate(self.steps[: step + 1]) if all_so_far else self.steps[step]


def _rows_after(learned: int, evaluated: int, settings: BenchmarkSettings) -> tuple[int, ...]:
    """The classifier rows after each learning step. Raises InputError when there are too few."""
    untested = settings.test_identities == 0 and settings.evaluate == "test"
    if learned < settings.steps or (evaluated == 0 and not untested):
        raise InputError(
            f"{learned} identities cannot fill benchmark.steps = {settings.steps}, or none is "
            f"left to evaluate on ({evaluated}): change benchmark's counts"
        )
    if settings.first_share is None or settings.steps == 1:
        parts = np.array_split(np.arange(learned), settings.steps)
        return tuple(int(part[-1]) + 1 for part in parts)
    first = min(max(1, round(settings.first_share * learned)), learned - settings.steps + 1)
    parts = np.array_split(np.arange(first, learned), settings.steps - 1)
    return first, *(int(part[-1]) + 1 for part in parts)


def _tested(identities: int, settings: BenchmarkSettings) -> int:
    """How many of `identities` are tested on, so that no step trains on them."""
    wanted = settings.test_identities
    return min(1500, identities // 5) if wanted is None else wanted


def counted_split(
    identities: int, images: int, settings: BenchmarkSettings
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`Benchmark.row_ends` and the number of training images of each step, from counts alone.

    For planning without the dataset: every identity is taken to have two cameras and equally many
    images. Raises InputError as `build_benchmark` does.
    """
    if (read := settings.read_file()) is not None:
        rows = tuple(np.cumsum([len(step) for step in read[0].steps]).tolist())
        return rows, _spread(rows, images, identities, len(read[0].seen))
    draw, everyone = np.uint64(0), np.arange(identities)
    tested = _tested(identities, settings)
    chosen, pool = choose(
        draw=draw, pool=everyone, count=tested, what="test_identities", rule=THERE
    )
    wanted = len(pool) if settings.train_identities is None else settings.train_identities
    learned, _ = choose(draw=draw, pool=pool, count=wanted, what="train_identities", rule=_LEFT)
    if settings.evaluate == "validation":
        count = settings.validation_identities
        chosen, learned = choose(
            draw=draw, pool=learned, count=count, what="validation_identities", rule=THERE
        )
    rows = _rows_after(len(learned), len(chosen), settings)
    held_out = min(settings.seen_identities, rows[0]) if images >= 2 * identities else 0
    return rows, _spread(rows, images, identities, held_out)


def _spread(rows: Sequence[int], images: int, identities: int, held_out: int) -> tuple[int, ...]:
    """The number of training images of each step, when all identities have equally many."""
    counts = [images * (last - first) // identities for first, last in pairwise((0, *rows))]
    return counts[0] - held_out, *counts[1:]


def build_benchmark(
    dataset: ShardDataset, settings: BenchmarkSettings, known: Sequence[str] | None = None
) -> Benchmark:
    """The learning steps and test sets of `dataset` under `settings`.

    `known` are the identities of a model's rows, if the run continues from one: they form step 0,
    which needs no training, and the steps of `settings`, which follow, neither learn nor test them
    again. Raises InputError when an identity has no image, there are too few identities, or the
    dataset lacks what the benchmark file names.
    """
    images = np.bincount(dataset.identity, minlength=dataset.manifest["identities"])
    if (images == 0).any():
        name = dataset.names[int(np.argmin(images))]
        raise InputError(
            f"identity {name!r} of {dataset.folder} has no image: remove it from the source and "
            "build the dataset again"
        )
    read = settings.read_file()
    before = KnownIdentities.of(known, dataset)
    if read is None:
        return _drawn(dataset, settings, before)
    return _listed(dataset, settings, before, *read)


def _listed(
    dataset: ShardDataset,
    settings: BenchmarkSettings,
    known: KnownIdentities,
    file: BenchmarkFile,
    path: Path,
) -> Benchmark:
    """The benchmark that `file`, read from `path`, describes."""
    placed = place(file, path, dataset)
    tested = np.concatenate([placed.query, placed.gallery])
    known.refuse(np.flatnonzero(placed.row >= 0), dataset, f"{path} trains on")
    known.refuse(np.unique(dataset.identity[tested]), dataset, f"{path} tests on")
    row, rows = known.with_new(placed.row), known.before(placed.rows)
    old = (known.row[dataset.identity] >= 0) & with_role(dataset, "train")
    old[placed.seen] = False
    trained = np.union1d(placed.trained, np.flatnonzero(old))

    def by_step(samples: Ids) -> tuple[Ids, ...]:
        step = np.searchsorted(rows, row[dataset.identity[samples]], side="right")
        return tuple(samples[step == t] for t in range(len(rows)))

    none = np.empty(0, dtype=np.int64)
    measured = np.isin(dataset.identity[trained], dataset.identity[placed.seen])
    return Benchmark(
        steps=by_step(trained),
        row_of_identity=row,
        row_ends=rows,
        query=placed.query,
        gallery=placed.gallery,
        pairs=none.reshape(0, 2),
        same=none.astype(bool),
        folds=none,
        seen_query=placed.seen,
        seen_gallery=trained[measured],
        names=_names(dataset, row, rows[-1], known),
        classified=by_step(placed.classified) if len(placed.classified) else (),
    )


def _names(dataset: ShardDataset, row: Ids, rows: int, known: KnownIdentities) -> Names:
    """[rows] the identity of each row."""
    names = np.empty(rows, dtype=np.object_)
    names[: known.count] = known.names
    new = row >= known.count
    names[row[new]] = dataset.names[new]
    return names


def _drawn(dataset: ShardDataset, settings: BenchmarkSettings, known: KnownIdentities) -> Benchmark:
    """The benchmark drawn by `settings.seed` from the images with role train."""
    count = dataset.manifest["identities"]
    trains = with_role(dataset, "train")
    everyone = np.unique(dataset.identity[trains])
    everyone = everyone[known.row[everyone] < 0]
    several, rule = testable(dataset, everyone, settings)
    seed, able = settings.seed, everyone[several[everyone]]
    chosen, rest = choose(
        draw=stream_key(seed, "test"),
        pool=able,
        count=_tested(len(everyone), settings),
        what="test_identities",
        rule=rule,
    )
    pool = np.sort(np.concatenate([rest, everyone[~several[everyone]]]))
    wanted = len(pool) if settings.train_identities is None else settings.train_identities
    learned, _ = choose(
        draw=stream_key(seed, "train"), pool=pool, count=wanted, what="train_identities", rule=_LEFT
    )
    if settings.evaluate == "validation":
        able = learned[several[learned]]
        count_, draw = settings.validation_identities, stream_key(seed, "validation")
        chosen, rest = choose(
            draw=draw, pool=able, count=count_, what="validation_identities", rule=rule
        )
        learned = np.sort(np.concatenate([rest, learned[~several[learned]]]))
    rows = known.before(_rows_after(len(learned), len(chosen), settings))
    row = np.full(count, -1, dtype=np.int64)
    row[shuffled(stream_key(seed, "steps"), learned)] = np.arange(len(learned))
    row = known.with_new(row)
    sample_rows = row[dataset.identity]
    step_of = np.searchsorted(rows, sample_rows, side="right")
    step_of[(sample_rows < 0) | ~trains] = -1
    classified = classified_samples(dataset, settings, row, learned)
    task = np.searchsorted(rows, sample_rows[classified], side="right")
    step_of[classified] = -1
    seen_query, seen_gallery = seen_split(dataset, np.flatnonzero(step_of == 0), settings)
    step_of[seen_query] = -1
    query, gallery = query_and_gallery(dataset, chosen, settings)
    pairs, same, folds = verification_pairs(dataset, query, gallery, settings)
    return Benchmark(
        steps=tuple(np.flatnonzero(step_of == t) for t in range(len(rows))),
        row_of_identity=row,
        row_ends=rows,
        query=query,
        gallery=gallery,
        pairs=pairs,
        same=same,
        folds=folds,
        seen_query=seen_query,
        seen_gallery=seen_gallery,
        names=_names(dataset, row, rows[-1], known),
        classified=tuple(classified[task == t] for t in range(len(rows))) if len(task) else (),
        by_image=by_image(dataset, settings),
    )
