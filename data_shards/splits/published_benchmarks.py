"""The papers' benchmarks, drawn from a dataset into a benchmark file.

Every draw is a hash of the seed and of names, never of positions in a dataset, so that everybody
who imports the same source gets the same file.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import bits, stream_key
from data_shards.settings import InputError
from data_shards.sources import ROLES
from data_shards.splits.benchmark_file import BenchmarkFile, Names
from data_shards.storage.dataset import ShardDataset

Ids = NDArray[np.int64]
_TRAIN, _QUERY, _GALLERY = (ROLES.index(role) for role in ("train", "query", "gallery"))
ORDER_SEED = 1993
"""Decides the order of classes in class-incremental learning, since iCaRL."""


def crl_face(dataset: ShardDataset, steps: int, seed: int, seen: int) -> BenchmarkFile:
    """CRL-face (CRL paper, Sec. 3): all identities, split randomly and equally over the steps.

    One image of each of `seen` identities of step 0 is held out (the paper's Table 2). The tests,
    LFW and MegaFace, are datasets of their own.
    """
    parts = np.array_split(_shuffled(dataset, _trained(dataset), seed), steps)
    _all_filled(parts, steps)
    drawn = {"steps": steps, "seed": seed, "seen": seen}
    return BenchmarkFile(
        benchmark="crl-face",
        drawn=drawn,
        steps=_named(dataset, parts),
        seen=_keys(dataset, _seen(dataset, parts[0], seed, seen)),
    )


def crl_person(
    dataset: ShardDataset, steps: int, seed: int, split: Sequence[Sequence[str]] | None = None
) -> BenchmarkFile:
    """CRL-person (CRL paper, Sec. 3), from the merged sources or from the set as distributed.

    Training identities are split randomly and equally, or as `split` says, which is identity names
    by step. Of the test images all identities with a query stay, each with at most one image per
    camera among the queries and one in the gallery; chosen randomly, which leaves a set that was
    reduced before as it is.
    """
    trained = _trained(dataset)
    if split is None:
        names = _named(dataset, np.array_split(_shuffled(dataset, trained, seed), steps))
    else:
        names = tuple(tuple(step) for step in split)
        listed, held = {name for step in names for name in step}, set(dataset.names[trained])
        if other := sorted(listed ^ held):
            raise InputError(
                f"the split file and {dataset.location} do not list the same training identities: "
                f"{len(listed - held)} are only in the file, {len(held - listed)} only in the "
                f"dataset, such as {other[0]!r}"
            )
    _all_filled(names, steps)
    asked = np.zeros(len(dataset.names), dtype=bool)
    asked[dataset.identity[dataset.role == _QUERY]] = True
    if not asked.any():
        raise InputError(f"{dataset.location} has no images with role query: import a re-id source")
    kept = asked[dataset.identity]
    query, gallery = (
        _one_a_camera(dataset, np.flatnonzero(kept & (dataset.role == role)), seed, ROLES[role])
        for role in (_QUERY, _GALLERY)
    )
    return BenchmarkFile(
        benchmark="crl-person",
        drawn={"steps": steps, "seed": seed, "split": "drawn" if split is None else "given"},
        steps=names,
        query=_keys(dataset, query),
        gallery=_keys(dataset, gallery),
    )


def bct_face(dataset: ShardDataset, percents: Sequence[float], seed: int) -> BenchmarkFile:
    """Growing random subsets of the identities (BCT paper): step t brings the ones that the subset
    of `percents`[t] adds. Methods of backward-compatible training learn from all steps so far.
    """
    if list(percents) != sorted(set(percents)) or not 0 < percents[0] <= percents[-1] <= 100:
        raise InputError(f"percents {list(percents)} must ascend, above 0 and up to 100")
    order = _shuffled(dataset, _trained(dataset), seed)
    ends = [0, *(round(len(order) * percent / 100) for percent in percents)]
    parts = [order[first:last] for first, last in pairwise(ends)]
    _all_filled(parts, len(percents))
    return BenchmarkFile(
        benchmark="bct-face",
        drawn={"percents": list(percents), "seed": seed},
        steps=_named(dataset, parts),
    )


def class_incremental(dataset: ShardDataset, tasks: int, equal: bool = False) -> BenchmarkFile:
    """Half of the classes first, then the rest in `tasks` equal tasks; or all in `tasks` `equal`
    ones.

    Classes are ordered by name and permuted by NumPy's RandomState(1993), as is customary since
    iCaRL. The images with role query are the test images of their classes.
    """
    trained = _trained(dataset)
    by_name = trained[np.argsort(dataset.names[trained].astype(str), kind="stable")]
    # not `counter_rng`: published results use this very order
    order = by_name[np.random.RandomState(ORDER_SEED).permutation(len(by_name))]
    half = 0 if equal else len(order) // 2
    parts = [*([] if equal else [order[:half]]), *np.array_split(order[half:], tasks)]
    _all_filled(parts, len(parts))
    learned = np.zeros(len(dataset.names), dtype=bool)
    learned[trained] = True
    tested = np.flatnonzero((dataset.role == _QUERY) & learned[dataset.identity])
    if not len(tested):
        raise InputError(
            f"{dataset.location} has no test images of its classes (role query): import a source "
            "that comes divided, such as imagenet with folders train and val"
        )
    return BenchmarkFile(
        benchmark="class-incremental",
        drawn={"tasks": tasks, "order_seed": ORDER_SEED} | ({"equal": True} if equal else {}),
        steps=_named(dataset, parts),
        classified=_keys(dataset, tested),
    )


def _trained(dataset: ShardDataset) -> Ids:
    """The identities that have an image with role train."""
    return np.unique(dataset.identity[dataset.role == _TRAIN])


def _shuffled(dataset: ShardDataset, identities: Ids, seed: int) -> Ids:
    """`identities` in an order that depends only on the seed and their names."""
    names = dataset.names[identities].tolist()
    draws = [int(stream_key(seed, "identity", name)) for name in names]
    return identities[sorted(range(len(names)), key=lambda i: (draws[i], names[i]))]


def _named(dataset: ShardDataset, parts: Sequence[Ids]) -> tuple[Names, ...]:
    return tuple(tuple(dataset.names[part].tolist()) for part in parts)


def _keys(dataset: ShardDataset, samples: Ids) -> Names:
    """The keys of `samples`, sorted, so that the file does not depend on the dataset's order."""
    return tuple(sorted(dataset.keys(samples)))


def _all_filled(parts: Sequence[Sequence[str] | Ids], steps: int) -> None:
    if len(parts) != steps or not all(len(part) for part in parts):
        filled = sum(len(part) > 0 for part in parts)
        raise InputError(f"there are identities for {filled} learning steps, not for {steps}")


def _drawn_first(dataset: ShardDataset, samples: Ids, group: Ids, key: np.uint64) -> Ids:
    """One of `samples` for each value of `group` ([n] both), drawn by the hash of its key."""
    draws = bits(key, dataset.key_hashes[samples])
    order = np.lexsort((draws, group))
    _, first = np.unique(group[order], return_index=True)
    return samples[order[first]]


def _one_a_camera(dataset: ShardDataset, samples: Ids, seed: int, part: str) -> Ids:
    cameras = len(dataset.manifest["cameras"])
    group = dataset.identity[samples] * cameras + dataset.camera[samples]
    return _drawn_first(dataset, samples, group, stream_key(seed, "camera", part))


def _seen(dataset: ShardDataset, identities: Ids, seed: int, count: int) -> Ids:
    """One training image of the first `count` of `identities` that have another one."""
    images = np.bincount(dataset.identity[dataset.role == _TRAIN], minlength=len(dataset.names))
    chosen = np.zeros(len(dataset.names), dtype=bool)
    chosen[identities[images[identities] > 1][:count]] = True
    samples = np.flatnonzero(chosen[dataset.identity] & (dataset.role == _TRAIN))
    return _drawn_first(dataset, samples, dataset.identity[samples], stream_key(seed, "seen"))
