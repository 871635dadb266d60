"""Each protocol against a brute-force version of itself."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from trainer.evaluation import EvaluationSettings
from trainer.evaluation.protocol import evaluate, samples_to_embed, search_examples
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


@pytest.fixture(scope="module")
def tested(small):
    """A benchmark, and embeddings of its tested samples that say whom they show, with noise."""
    benchmark = build_benchmark(
        small, BenchmarkSettings(steps=2, test_identities=24, pairs=200, seen_identities=10)
    )
    samples = samples_to_embed(benchmark)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 6))
    vectors = centres[small.identity[samples]] + rng.normal(size=(len(samples), 6))
    vectors *= rng.uniform(0.2, 5, (len(samples), 1))  # so that cosine and Euclidean differ
    return benchmark, samples, vectors.astype(np.float32)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_an_evaluation_puts_each_samples_own_embedding_to_each_test(small, tested, distance):
    benchmark, samples, vectors = tested
    found = evaluate(small, benchmark, samples, vectors, EvaluationSettings(distance=distance))
    if distance == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    of = dict(zip(samples.tolist(), torch.from_numpy(vectors).double(), strict=True))

    def search(query, gallery):
        parts = [torch.stack([of[s] for s in part.tolist()]) for part in (query, gallery)]
        people = [small.identity[part] for part in (query, gallery)]
        cameras = [small.camera[part] for part in (query, gallery)]
        return brute_force(*parts, *people, *cameras, 50)

    cmc, precision, penalty, skipped = search(benchmark.query, benchmark.gallery)
    expected = [cmc[0], precision, penalty, skipped]
    names = ("top1", "map", "minp", "queries_without_match")
    assert [found[name] for name in names] == pytest.approx(expected)
    assert found["cmc"] == pytest.approx(cmc.tolist())
    seen = search(benchmark.seen_query, benchmark.seen_gallery)
    assert found["seen_top1"] == pytest.approx(seen[0][0])
    assert found["seen_top1"] != found["top1"]
    apart = [((of[a] - of[b]) ** 2).sum().item() for a, b in benchmark.pairs.tolist()]
    accuracy = ten_fold_accuracy(np.array(apart), benchmark.same, benchmark.folds)
    assert found["verification"] == pytest.approx(accuracy)


def test_queries_that_can_find_nothing_are_counted(small, tested):
    benchmark, samples, vectors = tested
    lonely = small.identity[benchmark.query[0]]
    kept = benchmark.gallery[small.identity[benchmark.gallery] != lonely]
    without = dataclasses.replace(benchmark, gallery=kept)
    found = evaluate(small, without, samples, vectors, EvaluationSettings())
    count = (small.identity[benchmark.query] == lonely).sum()
    assert found["queries_without_match"] == count > 0


def test_a_fold_has_no_say_in_its_own_threshold():
    same = np.tile([True, False], 20)
    folds = np.repeat([0, 1], 20)
    distance = np.where(same, 0.0, 1.0) + 2 * folds  # each fold is perfect under its own
    assert ten_fold_accuracy(distance, same, folds) == 0.5


def test_what_a_benchmark_has_no_images_for_is_left_out(small):
    """As in CRL-face: no identity is held out, but images of step 0 are; or nothing at all."""
    whole = build_benchmark(
        small, BenchmarkSettings(steps=2, test_identities=24, pairs=40, seen_identities=10)
    )
    none = np.empty(0, dtype=np.int64)
    seen = dataclasses.replace(
        whole, query=none, gallery=none, pairs=none.reshape(0, 2), same=none > 0, folds=none
    )
    nothing = dataclasses.replace(seen, seen_query=none, seen_gallery=none)
    vectors = np.random.default_rng(0).normal(size=(len(small), 8)).astype(np.float32)

    def measured(benchmark):
        samples = samples_to_embed(benchmark)
        given = (small, benchmark, samples, vectors[samples], EvaluationSettings(examples=3))
        return evaluate(*given), search_examples(*given)

    everything, _ = measured(whole)
    found, examples = measured(seen)
    assert found == {"seen_top1": everything["seen_top1"]}
    assert len(examples) == 3
    for shown in examples:
        scores = [found["score"] for found in shown["found"]]
        assert scores == sorted(scores, reverse=True)
        assert all(-1.001 <= score <= 1.001 for score in scores)
    assert measured(nothing) == ({}, [])
