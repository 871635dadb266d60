"""Which old classes are taken for new ones: against a search through all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer import similar as module
from trainer.similar import similar


def centres(seed, count, dimension=3):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def brute_force(new, old, count):
    """Again and again the nearest pair that is left."""
    pairs = {
        (float(np.sqrt(((a.astype(float) - b.astype(float)) ** 2).sum())), n, o)
        for n, a in enumerate(new)
        for o, b in enumerate(old)
    }
    taken = []
    while pairs:
        pair = min(pairs)
        taken.append(pair)
        pairs = {p for p in pairs if p[2] != pair[2] and sum(q[1] == p[1] for q in taken) < count}
    return taken


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    sizes=st.tuples(st.integers(1, 7), st.integers(0, 30)),
    count=st.integers(0, 4),
    rounded=st.booleans(),
)
def test_the_nearest_pair_that_is_left_comes_next(seed, sizes, count, rounded):
    """Ties, of rounded centres, and more old classes than are looked up at first included."""
    new, old = centres(seed, sizes[0]), centres(seed + 1, sizes[1])
    if rounded:
        new, old = new.round(), old.round()
    found = similar(new, old, count)
    wanted = brute_force(new, old, count) if count else []
    assert [(pair.new, pair.old) for pair in found] == [pair[1:] for pair in wanted]
    np.testing.assert_allclose([p.distance for p in found], [p[0] for p in wanted], rtol=1e-6)


def test_new_classes_that_all_want_the_same_old_ones_look_further():
    """Behind those that were looked up at first."""
    rng = np.random.default_rng(0)
    new = rng.normal(size=(40, 2), scale=1e-3).astype(np.float32)
    old = np.stack([np.arange(60), np.zeros(60)], axis=1).astype(np.float32)
    found = similar(new, old, 1)
    assert len(found) == 40 and {pair.old for pair in found} == {*range(40)}
    assert module._AT_FIRST < 40


def test_blocks_of_new_classes_change_nothing(monkeypatch):
    new, old = centres(0, 20), centres(1, 50)
    whole = similar(new, old, 2)
    monkeypatch.setattr(module, "_BLOCK", 3)
    assert similar(new, old, 2) == whole


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_classes_plays_no_part(seed):
    new, old = centres(seed, 6), centres(seed + 9, 20)
    rng = np.random.default_rng(seed)
    p, q = rng.permutation(6), rng.permutation(20)
    found = {(p[pair.new], q[pair.old]) for pair in similar(new[p], old[q], 3)}
    assert found == {(pair.new, pair.old) for pair in similar(new, old, 3)}
