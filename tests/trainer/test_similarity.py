"""SVCCA against numpy's linear algebra, and what it must not depend on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation.similarity import Moments, svcca


def compared(left, right, variance=0.99, batch=100):
    left, right = (torch.as_tensor(np.asarray(one)) for one in (left, right))
    moments = Moments(left.shape[1], right.shape[1])
    for first in range(0, len(left), batch):
        moments.add(left[first : first + batch], right[first : first + batch])
    return svcca(moments, variance)


def by_hand(left, right, variance):
    """From the singular vectors of the data themselves: cosines of the principal angles."""
    bases = []
    for data in (left, right):
        vectors, values, _ = np.linalg.svd(data - data.mean(axis=0), full_matrices=False)
        shares = np.cumsum(values**2) / np.sum(values**2)
        bases.append(vectors[:, : np.searchsorted(shares, variance) + 1])
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return correlations.mean(), tuple(base.shape[1] for base in bases)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(30, 200),
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_it_equals_singular_vectors_of_the_data(seed, samples, p, q, variance):
    draw = np.random.default_rng(seed)
    common = draw.normal(size=(samples, 4))
    left = common @ draw.normal(size=(4, p)) + 0.3 * draw.normal(size=(samples, p)) + 50
    right = common @ draw.normal(size=(4, q)) * 7 + draw.normal(size=(samples, q)) - 3
    found = compared(left, right, variance, batch=17)
    mean, kept = by_hand(left, right, variance)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert (found.kept, found.samples) == (kept, samples)


def test_it_is_1_for_data_and_an_invertible_map_of_it():
    draw = np.random.default_rng(0)
    data = draw.normal(size=(300, 8))
    mixed = data @ (draw.normal(size=(8, 8)) + 3 * np.eye(8)) + 5
    assert compared(data, mixed, variance=1.0).mean == pytest.approx(1, abs=1e-9)
    assert compared(data, data).mean == pytest.approx(1, abs=1e-9)


def test_it_does_not_change_with_rotations_lengths_and_places_of_either():
    draw = np.random.default_rng(1)
    left, right = draw.normal(size=(300, 6)) * [5, 4, 3, 2, 1, 0.1], draw.normal(size=(300, 4))
    right[:, :3] += left[:, :3]
    plain = compared(left, right)
    for _ in range(3):
        turns = [np.linalg.qr(draw.normal(size=(d, d)))[0] for d in (6, 4)]
        moved = compared(100 * left @ turns[0] + 9, 0.01 * right @ turns[1] - 2)
        assert moved.mean == pytest.approx(plain.mean, abs=1e-9) and moved.kept == plain.kept
    assert compared(right, left).mean == pytest.approx(plain.mean, abs=1e-9)


def test_of_independent_data_it_is_near_0_for_many_samples_and_its_floor_for_few():
    draw = np.random.default_rng(2)
    many = compared(draw.normal(size=(100_000, 5)), draw.normal(size=(100_000, 5)))
    assert many.mean < 0.02
    for p, q, samples in ((20, 5, 100), (20, 20, 100), (5, 20, 400)):
        tries = [
            compared(draw.normal(size=(samples, p)), draw.normal(size=(samples, q)), variance=1.0)
            for _ in range(30)
        ]
        mean = np.mean([one.mean for one in tries])
        assert 0.75 * tries[0].floor < mean < tries[0].floor
        assert tries[0].floor == pytest.approx((max(p, q) / (samples - 1)) ** 0.5)


def test_squared_correlations_of_independent_data_have_the_mean_that_the_floor_is_the_root_of():
    draw = np.random.default_rng(3)
    squares = []
    for _ in range(200):
        bases = [np.linalg.qr(m - m.mean(axis=0))[0] for m in draw.normal(size=(2, 60, 7))]
        squares.append(np.mean(np.linalg.svd(bases[0].T @ bases[1][:, :4], compute_uv=False) ** 2))
    assert np.mean(squares) == pytest.approx(7 / 59, rel=0.05)


def test_directions_below_the_variance_kept_do_not_count():
    draw = np.random.default_rng(4)
    signal = draw.normal(size=(500, 2))
    left, right = (np.hstack([signal, 1e-3 * draw.normal(size=(500, 9))]) for _ in range(2))
    assert compared(left, right).mean == pytest.approx(1, abs=1e-4)
    assert compared(left, right, variance=1.0).mean < 0.5


def test_what_never_changes_is_like_nothing():
    data = np.random.default_rng(5).normal(size=(50, 3))
    found = compared(data, np.full((50, 2), 7.0))
    assert found.mean == 0 and found.kept == (3, 0)
