"""Errors split by meta-classes, and clusters of points, against naive counts and scipy's."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from trainer.evaluation.meta_classes import clustered, split_errors


@pytest.mark.parametrize("old", [0, 4, 12])
def test_each_error_is_of_one_part_and_the_parts_add_up(old):
    draws = np.random.default_rng(old)
    meta = draws.integers(0, 4, 12)
    label, said = draws.integers(0, 12, 500), draws.integers(0, 12, 500)
    found = split_errors(said, label, meta, old)
    parts = {"confusion": 0, "forgetting": 0, "other": 0}
    for own, taken in zip(label.tolist(), said.tolist(), strict=True):
        if own == taken:
            continue
        if meta[own] == meta[taken]:
            parts["confusion"] += 1
        elif own < old:
            parts["forgetting"] += 1
        else:
            parts["other"] += 1
    assert {part: getattr(found, part) for part in parts} == parts
    assert found.wrong == sum(parts.values()) == (label != said).sum() and found.images == 500
    assert (found.forgetting > 0) == (old > 0) and (found.other > 0) == (old < 12)


def test_one_meta_class_makes_all_errors_confusion_and_one_each_makes_none():
    label, said = np.array([0, 1, 2, 3]), np.array([1, 1, 0, 2])
    alike = split_errors(said, label, np.zeros(4, dtype=np.int64), 2)
    assert (alike.confusion, alike.forgetting, alike.other) == (3, 0, 0)
    apart = split_errors(said, label, np.arange(4), 2)
    assert (apart.confusion, apart.forgetting, apart.other) == (0, 1, 2)


@pytest.mark.parametrize("count", [1, 2, 7, 39, 40])
def test_clusters_are_wards(count):
    points = np.random.default_rng(3).normal(size=(40, 5))
    found = clustered(points, count)
    theirs = fcluster(linkage(points, "ward"), count, "maxclust")
    assert len(set(zip(found.tolist(), theirs.tolist(), strict=True))) == count
    first = [found.tolist().index(number) for number in range(count)]
    assert first == sorted(first), "numbered by their first points"


def test_of_equal_merges_the_first_points_are_merged():
    line = np.arange(6.0)[:, None]
    assert clustered(line, 5).tolist() == [0, 0, 1, 2, 3, 4]
    assert clustered(line, 3).tolist() == [0, 0, 1, 1, 2, 2]
    assert clustered(np.zeros((4, 2)), 3).tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("count", [0, 5])
def test_more_clusters_than_points_are_refused(count):
    with pytest.raises(ValueError, match=f"in {count} clusters: give 1 to 4"):
        clustered(np.zeros((4, 2)), count)
