"""Splits identities into learning steps and fixed test sets: functions of dataset and settings."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import bits, shuffled, stream_key
from data_shards.settings import InputError
from data_shards.sources import ROLES
from data_shards.splits.benchmark_file import BenchmarkFile, place
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.cameras import knows_cameras
from data_shards.splits.classified import classified_samples
from data_shards.splits.known import KnownIdentities, Names
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.joined import JoinedDataset

Ids = NDArray[np.int64]
FOLDS = 10
_THERE = "are there: lower it or use a larger dataset"
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
        row_of = {name: row for row, name in enumerate(self.names.tolist())}
        others = data.names[len(self.row_of_identity) :].tolist()
        rows = np.array([row_of.get(name, -1) for name in others], dtype=np.int64)
        rows = np.concatenate([self.row_of_identity, rows])
        exemplars = np.arange(first, len(data), dtype=np.int64)
        unknown = exemplars[rows[data.identity[exemplars]] < 0]
        if len(unknown):
            raise InputError(
                f"{data.parts[1].location} holds an exemplar of "
                f"{data.names[data.identity[unknown[0]]]!r}, which no learning step has learned: "
                "it is another run's"
            )
        return replace(self, row_of_identity=rows, exemplars=exemplars)

    def step_samples(self, step: int, all_so_far: bool) -> Ids:
        """The samples of `step`, or of every step up to it."""
        return np.concatenate(self.steps[: step + 1]) if all_so_far else self.steps[step]


def _choose(draw: np.uint64, pool: Ids, count: int, what: str, rule: str) -> tuple[Ids, Ids]:
    """`count` identities drawn from `pool`, and the rest of it, both in ascending order.

    Raises InputError when the pool is too small; `rule` describes its identities there.
    """
    if count > len(pool):
        raise InputError(f"benchmark.{what} is {count}, but only {len(pool)} identities {rule}")
    order = shuffled(draw, pool)
    return np.sort(order[:count]), np.sort(order[count:])


def _trains(dataset: ShardDataset) -> NDArray[np.bool_]:
    """[n] which samples have role train."""
    return dataset.role == ROLES.index("train")


def _asks(dataset: ShardDataset) -> NDArray[np.bool_]:
    """[n] which samples have role query."""
    return dataset.role == ROLES.index("query")


def _by_identity(dataset: ShardDataset, samples: Ids) -> dict[int, Ids]:
    """The samples of each identity, ascending."""
    if not len(samples):
        return {}
    order = samples[np.argsort(dataset.identity[samples], kind="stable")]
    ids, starts = np.unique(dataset.identity[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True))


def by_image(dataset: ShardDataset, settings: BenchmarkSettings) -> bool:
    """Whether queries are drawn image by image: by the settings, or because no camera is known."""
    wanted = settings.queries == "images"
    return wanted or (settings.queries == "cameras" and not knows_cameras(dataset))


def _views(dataset: ShardDataset, settings: BenchmarkSettings) -> Ids:
    """[n] what an identity's queries and gallery must not share: the camera, or the image."""
    if by_image(dataset, settings):
        return np.arange(len(dataset))
    return dataset.camera.astype(np.int64)


def _testable(
    dataset: ShardDataset, everyone: Ids, settings: BenchmarkSettings
) -> tuple[NDArray[np.bool_], str]:
    """[identities of the dataset] which can be tested on, and the rule in words, for errors."""
    trains, count = _trains(dataset), dataset.manifest["identities"]
    images = np.bincount(dataset.identity[trains], minlength=count)
    if settings.queries == "role":
        able = np.bincount(dataset.identity[_asks(dataset)], minlength=count) > 0
        rule = "an image with role query beside those with role train"
        remedy = "benchmark.queries=cameras and =images go by images with role train alone"
    elif by_image(dataset, settings):
        able = images > 1
        rule, remedy = "two images with role train", "import more images of each identity"
    else:
        seen = np.flatnonzero(trains)
        views = np.unique(np.stack([dataset.identity[seen], dataset.camera[seen]]), axis=1)
        able = np.bincount(views[0], minlength=count) > 1
        several = int((images[everyone] > 1).sum())
        rule = "images from two cameras"
        remedy = (
            f"benchmark.queries=images asks for two images only, which {several:,} identities have"
        )
    if able[everyone].all():
        return able, _THERE
    return able, f"qualify of {len(everyone):,}, each needs {rule}: lower it, or {remedy}"


def _query_and_gallery(
    dataset: ShardDataset, tested: Ids, settings: BenchmarkSettings
) -> tuple[Ids, Ids]:
    """Splits the tested identities' samples by role or view; no identity shares a view."""
    none = np.empty(0, dtype=np.int64)
    theirs = np.isin(dataset.identity, tested)
    samples = np.flatnonzero(_trains(dataset) & theirs)
    if settings.queries == "role":
        return np.flatnonzero(_asks(dataset) & theirs), samples
    query, gallery, view = [none], [none], _views(dataset, settings)
    for identity, own in _by_identity(dataset, samples).items():
        key = stream_key(settings.seed, "query cameras", identity)
        views = shuffled(key, np.unique(view[own]))
        asked = views[: min(settings.query_cameras, len(views) - 1)]  # one is left for the gallery
        is_query = np.isin(view[own], asked)
        query.append(own[is_query])
        gallery.append(own[~is_query])
    return np.sort(np.concatenate(query)), np.sort(np.concatenate(gallery))


def _verification_pairs(
    dataset: ShardDataset, query: Ids, gallery: Ids, settings: BenchmarkSettings
) -> tuple[Ids, NDArray[np.bool_], Ids]:
    """Pairs in ten folds with disjoint identities, half of one identity, as LFW is built.

    Fewer than 20 identities make fewer folds.
    """
    queries, galleries = _by_identity(dataset, query), _by_identity(dataset, gallery)
    people = shuffled(stream_key(settings.seed, "folds"), np.array(sorted(queries)))
    if not len(people):
        none = np.empty(0, dtype=np.int64)
        return none.reshape(0, 2), none.astype(bool), none
    count = min(FOLDS, len(people) // 2)
    if count < 2:
        raise InputError(
            f"verification needs 4 evaluated identities for two folds, but there are "
            f"{len(people)}: raise benchmark.{settings.evaluate}_identities"
        )
    half = max(1, settings.pairs // (2 * count))
    pairs, same, folds = [], [], []
    for fold, members in enumerate(np.array_split(people, count)):
        draws = bits(stream_key(settings.seed, "pairs", fold), np.arange(8 * half)).reshape(-1, 4)
        for number, (a, b, left, right) in enumerate(draws.tolist()):
            first = members[a % len(members)]
            others = members[members != first]
            second = first if number < half else others[b % len(others)]
            q, g = queries[int(first)], galleries[int(second)]
            pairs.append((q[left % len(q)], g[right % len(g)]))
            same.append(first == second)
            folds.append(fold)
    return np.array(pairs, dtype=np.int64), np.array(same), np.array(folds, dtype=np.int64)


def _seen_split(
    dataset: ShardDataset, samples: Ids, settings: BenchmarkSettings
) -> tuple[Ids, Ids]:
    """One held-out sample of up to `seen_identities` identities with at least two, and the rest."""
    held = {i: own for i, own in _by_identity(dataset, samples).items() if len(own) > 1}
    order = shuffled(stream_key(settings.seed, "seen"), np.array(sorted(held), dtype=np.int64))
    query, gallery = [], []
    for identity in np.sort(order[: settings.seen_identities]).tolist():
        own = shuffled(stream_key(settings.seed, "seen image", identity), held[identity])
        query.append(own[:1])
        gallery.append(np.sort(own[1:]))
    empty = np.empty(0, dtype=np.int64)
    return np.concatenate([empty, *query]), np.concatenate([empty, *gallery])


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
    chosen, pool = _choose(
        draw=draw, pool=everyone, count=tested, what="test_identities", rule=_THERE
    )
    wanted = len(pool) if settings.train_identities is None else settings.train_identities
    learned, _ = _choose(draw=draw, pool=pool, count=wanted, what="train_identities", rule=_LEFT)
    if settings.evaluate == "validation":
        count = settings.validation_identities
        chosen, learned = _choose(
            draw=draw, pool=learned, count=count, what="validation_identities", rule=_THERE
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
    old = (known.row[dataset.identity] >= 0) & _trains(dataset)
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
    trains = _trains(dataset)
    everyone = np.unique(dataset.identity[trains])
    everyone = everyone[known.row[everyone] < 0]
    several, rule = _testable(dataset, everyone, settings)
    seed, able = settings.seed, everyone[several[everyone]]
    chosen, rest = _choose(
        draw=stream_key(seed, "test"),
        pool=able,
        count=_tested(len(everyone), settings),
        what="test_identities",
        rule=rule,
    )
    pool = np.sort(np.concatenate([rest, everyone[~several[everyone]]]))
    wanted = len(pool) if settings.train_identities is None else settings.train_identities
    learned, _ = _choose(
        draw=stream_key(seed, "train"), pool=pool, count=wanted, what="train_identities", rule=_LEFT
    )
    if settings.evaluate == "validation":
        able = learned[several[learned]]
        count_, draw = settings.validation_identities, stream_key(seed, "validation")
        chosen, rest = _choose(
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
    seen_query, seen_gallery = _seen_split(dataset, np.flatnonzero(step_of == 0), settings)
    step_of[seen_query] = -1
    query, gallery = _query_and_gallery(dataset, chosen, settings)
    pairs, same, folds = _verification_pairs(dataset, query, gallery, settings)
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
        classified=classified_samples(dataset, settings, row, rows, learned),
        by_image=by_image(dataset, settings),
    )
