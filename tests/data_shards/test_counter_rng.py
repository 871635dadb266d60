import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_shards.counter_rng import Permutation, integers, shuffled, stream_key, uniform


@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_a_permutation_has_every_item_once(n, seed):
    found = Permutation(n, stream_key(seed, "p"))(np.arange(n))
    assert sorted(found.tolist()) == list(range(n))


def test_permutations_of_large_ranges_are_evaluated_anywhere():
    permutation = Permutation(10**12, stream_key(0, "p"))
    some = np.array([0, 5, 10**12 - 1])
    found = permutation(some)
    assert ((found >= 0) & (found < 10**12)).all()
    assert len(set(found.tolist())) == 3
    assert permutation(some[1:2]).tolist() == found[1:2].tolist()


def test_two_keys_give_unrelated_permutations():
    a = Permutation(10_000, stream_key(0, "epoch", 0))(np.arange(10_000))
    b = Permutation(10_000, stream_key(0, "epoch", 1))(np.arange(10_000))
    assert (a == b).sum() < 10
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.05


def test_draws_are_uniform_and_depend_on_their_index_alone():
    index = np.arange(100_000)
    draws = uniform(stream_key(7, "x"), index)
    assert abs(draws.mean() - 0.5) < 0.005
    assert np.histogram(draws, 10, (0, 1))[0].min() > 9_500
    assert (uniform(stream_key(7, "x"), index[::-1]) == draws[::-1]).all()
    counts = np.bincount(integers(stream_key(7, "y"), index, -2, 2) + 2)
    assert len(counts) == 5
    assert counts.min() > 19_000


@given(st.lists(st.integers(0, 100), max_size=50))
def test_shuffling_keeps_the_items(items):
    assert sorted(shuffled(stream_key(1, "s"), np.array(items, dtype=np.int64))) == sorted(items)
