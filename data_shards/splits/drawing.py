"""Draws identities to test on, and what their images are in the tests: by seed and identity."""

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import bits, shuffled, stream_key
from data_shards.settings import InputError
from data_shards.sources import ROLES
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.cameras import knows_cameras
from data_shards.storage.dataset import ShardDataset

Ids = NDArray[np.int64]
FOLDS = 10
THERE = "are there: lower it or use a larger dataset"


def choose(draw: np.uint64, pool: Ids, count: int, what: str, rule: str) -> tuple[Ids, Ids]:
    """`count` identities drawn from `pool`, and the rest of it, both in ascending order.

    Raises InputError when the pool is too small; `rule` describes its identities there.
    """
    if count > len(pool):
        raise InputError(f"benchmark.{what} is {count}, but only {len(pool)} identities {rule}")
    order = shuffled(draw, pool)
    return np.sort(order[:count]), np.sort(order[count:])


def with_role(dataset: ShardDataset, role: str) -> NDArray[np.bool_]:
    """[n] which samples have the `role`."""
    return dataset.role == ROLES.index(role)


def by_identity(dataset: ShardDataset, samples: Ids) -> dict[int, Ids]:
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


def views_of(dataset: ShardDataset, settings: BenchmarkSettings) -> Ids:
    """[n] what an identity's queries and gallery must not share: the camera, or the image."""
    if by_image(dataset, settings):
        return np.arange(len(dataset))
    return dataset.camera.astype(np.int64)


def testable(
    dataset: ShardDataset, everyone: Ids, settings: BenchmarkSettings
) -> tuple[NDArray[np.bool_], str]:
    """[identities of the dataset] which can be tested on, and the rule in words, for errors."""
    trains, count = with_role(dataset, "train"), dataset.manifest["identities"]
    images = np.bincount(dataset.identity[trains], minlength=count)
    if settings.queries == "role":
        able = np.bincount(dataset.identity[with_role(dataset, "query")], minlength=count) > 0
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
        return able, THERE
    return able, f"qualify of {len(everyone):,}, each needs {rule}: lower it, or {remedy}"


def query_and_gallery(
    dataset: ShardDataset, tested: Ids, settings: BenchmarkSettings
) -> tuple[Ids, Ids]:
    """Splits the tested identities' samples by role or view; no identity shares a view."""
    none = np.empty(0, dtype=np.int64)
    theirs = np.isin(dataset.identity, tested)
    samples = np.flatnonzero(with_role(dataset, "train") & theirs)
    if settings.queries == "role":
        return np.flatnonzero(with_role(dataset, "query") & theirs), samples
    query, gallery, view = [none], [none], views_of(dataset, settings)
    for identity, own in by_identity(dataset, samples).items():
        key = stream_key(settings.seed, "query cameras", identity)
        views = shuffled(key, np.unique(view[own]))
        asked = views[: min(settings.query_cameras, len(views) - 1)]  # one is left for the gallery
        is_query = np.isin(view[own], asked)
        query.append(own[is_query])
        gallery.append(own[~is_query])
    return np.sort(np.concatenate(query)), np.sort(np.concatenate(gallery))


def verification_pairs(
    dataset: ShardDataset, query: Ids, gallery: Ids, settings: BenchmarkSettings
) -> tuple[Ids, NDArray[np.bool_], Ids]:
    """Pairs in ten folds with disjoint identities, half of one identity, as LFW is built.

    Fewer than 20 identities make fewer folds.
    """
    queries, galleries = by_identity(dataset, query), by_identity(dataset, gallery)
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


def seen_split(dataset: ShardDataset, samples: Ids, settings: BenchmarkSettings) -> tuple[Ids, Ids]:
    """One held-out sample of up to `seen_identities` identities with at least two, and the rest."""
    held = {i: own for i, own in by_identity(dataset, samples).items() if len(own) > 1}
    order = shuffled(stream_key(settings.seed, "seen"), np.array(sorted(held), dtype=np.int64))
    query, gallery = [], []
    for identity in np.sort(order[: settings.seen_identities]).tolist():
        own = shuffled(stream_key(settings.seed, "seen image", identity), held[identity])
        query.append(own[:1])
        gallery.append(np.sort(own[1:]))
    empty = np.empty(0, dtype=np.int64)
    return np.concatenate([empty, *query]), np.concatenate([empty, *gallery])
