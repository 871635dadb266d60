"""Describes a benchmark in sentences: its counts, what it leaves out, which settings it lowers."""

from collections.abc import Iterator

import numpy as np

from data_shards.sources import ROLES
from data_shards.splits.benchmark import Benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.drawing import FOLDS
from data_shards.storage.dataset import ShardDataset


def in_words(
    dataset: ShardDataset, settings: BenchmarkSettings, benchmark: Benchmark, known: int
) -> Iterator[str]:
    """Lines on the identities learned and tested; `known` of them were learned before."""
    tested = np.unique(dataset.identity[np.concatenate([benchmark.query, benchmark.gallery])])
    learned = benchmark.row_ends[-1] - known
    drawn = settings.file is None
    key = f" (benchmark.{settings.evaluate}_identities)" if drawn else ""
    yield f"{learned:,} identities are learned, {len(tested):,} kept for testing{key}"
    left = len(np.setdiff1d(np.flatnonzero(benchmark.row_of_identity < 0), tested))
    if left:
        yield f"{left:,} identities of the dataset are neither learned nor tested"
    if len(tested) > learned:
        less = (
            "lower benchmark.test_identities; 0 learns all, where benchmark.classified or "
            "evaluation.tests measure"
        )
        yield f"more identities are kept for testing than are learned: {less}"
    if drawn:
        yield from _lowered(dataset, settings, benchmark)


def _lowered(
    dataset: ShardDataset, settings: BenchmarkSettings, benchmark: Benchmark
) -> Iterator[str]:
    if benchmark.by_image and settings.queries == "cameras" and len(benchmark.query):
        yield (
            "no image says which camera took it: some images of each tested identity are the "
            "queries (benchmark.queries=images)"
        )
    folds = len(np.unique(benchmark.folds))
    if 0 < folds < FOLDS:
        yield f"verification has {folds} folds, not {FOLDS}: so few identities are tested"
    seen = len(benchmark.seen_query)
    tested = sum(map(len, benchmark.classified))
    if tested:
        held = settings.classified == "held-out"
        which = "held out of training" if held else "with role query"
        yield f"{tested:,} images {which} of the identities learned are classified"
    if seen < settings.seen_identities:
        yield (
            f"forgetting is measured on {seen:,} identities of step 0, the only ones with two "
            f"images here, not on benchmark.seen_identities = {settings.seen_identities:,}"
        )
    tests = [benchmark.query, benchmark.gallery, *benchmark.classified]
    used = np.concatenate([*benchmark.steps, *tests])
    idle = np.setdiff1d(np.flatnonzero(dataset.role != ROLES.index("train")), used)
    if len(idle):
        roles = ", ".join(ROLES[role] for role in np.unique(dataset.role[idle]))
        yield f"{len(idle):,} images have another role than train ({roles}) and are not used"
