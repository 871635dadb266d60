"""Each protocol against a brute-force version of itself."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.retrieval import nearest, retrieve
from trainer.evaluation.verification import best_threshold, ten_fold_accuracy


def brute_force(query, gallery, q_id, g_id, q_cam, g_cam, depth):
    """Query by query, as the re-id protocol is described."""
    cmc, precisions, penalties, skipped = np.zeros(depth), [], [], 0
    for vector, identity, camera in zip(query, q_id, q_cam, strict=True):
        kept = [j for j in range(len(g_id)) if not (g_id[j] == identity and g_cam[j] == camera)]
        ranked = sorted(kept, key=lambda j: (((vector - gallery[j]) ** 2).sum().item(), j))
        hits = [place for place, j in enumerate(ranked, start=1) if g_id[j] == identity]
        if not hits:
            skipped += 1
            continue
        cmc[hits[0] - 1 :] += 1
        precisions.append(np.mean([n / place for n, place in enumerate(hits, start=1)]))
        penalties.append(len(hits) / hits[-1])
    counted = max(1, len(query) - skipped)
    return cmc / counted, sum(precisions) / counted, sum(penalties) / counted, skipped


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tied", [False, True])
def test_retrieval_equals_brute_force(seed, tied):
    rng = np.random.default_rng(seed)
    q, g = 300 if seed == 0 else int(rng.integers(1, 40)), int(rng.integers(1, 60))
    draw = (
        (lambda n: rng.integers(0, 3, (n, 2)).astype(float))
        if tied
        else (lambda n: rng.normal(size=(n, 4)))
    )
    query, gallery = torch.from_numpy(draw(q)), torch.from_numpy(draw(g))
    ids = [rng.integers(0, 8, n) for n in (q, g)]
    cameras = [rng.integers(0, 3, n) for n in (q, g)]
    found = retrieve(query, gallery, *ids, *cameras, depth=10)
    cmc, precision, penalty, skipped = brute_force(query, gallery, *ids, *cameras, 10)
    np.testing.assert_allclose(found.cmc, cmc)
    np.testing.assert_allclose(
        [found.mean_average_precision, found.mean_inverse_penalty], [precision, penalty]
    )
    assert found.skipped == skipped


def test_nearest_equals_brute_force():
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randn(n, 5, generator=generator) for n in (300, 50))
    expected = torch.cdist(query, gallery).argsort(dim=1)[:, :4].numpy()
    assert np.array_equal(nearest(query, gallery, 4), expected)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_the_threshold_is_the_best_of_all(pairs):
    distance = np.array([d for d, _ in pairs], dtype=float)
    same = np.array([s for _, s in pairs])

    def right(threshold):
        return ((distance < threshold) == same).sum()

    candidates = np.arange(-1, 8, 0.25)
    assert right(best_threshold(distance, same)) == max(right(t) for t in candidates)


def test_each_fold_is_judged_by_the_others_threshold():
    folds = np.repeat(np.arange(10), 4)
    same = np.tile([True, True, False, False], 10)
    distance = np.tile([0.1, 0.2, 0.8, 0.9], 10)
    assert ten_fold_accuracy(distance, same, folds) == 1.0
    distance[:4] += 5  # a fold that alone would choose its own threshold
    assert ten_fold_accuracy(distance, same, folds) == pytest.approx(0.95)


def test_random_embeddings_verify_at_chance():
    rng = np.random.default_rng(0)
    accuracy = ten_fold_accuracy(rng.random(6000), np.arange(6000) % 2 == 0, np.arange(6000) // 600)
    assert 0.47 < accuracy < 0.53
