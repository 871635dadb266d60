"""How stored means follow embeddings: the formula, its limits, and what it repairs."""

import numpy as np
import pytest
import torch

from trainer.replay.drift import moved, movement


def by_loops(means, before, after):
    """The map of the formula, by the normal equations of one output dimension at a time."""
    z, m = before.astype(float), after.astype(float) - before.astype(float)
    n, dimension = z.shape
    center = [sum(z[:, i]) / n for i in range(dimension)]
    apart = np.array([[z[k, i] - center[i] for i in range(dimension)] for k in range(n)])
    held = sum(apart[k, i] ** 2 for k in range(n) for i in range(dimension)) / n
    # the prior as d more rows of data, which say that nothing moves but the mean
    rows = np.concatenate([apart, np.sqrt(held) * np.eye(dimension)])
    out = np.array(means, dtype=float)
    for j in range(dimension):
        shift = sum(m[:, j]) / n
        says = np.concatenate([m[:, j] - shift, np.zeros(dimension)])
        by, *_ = np.linalg.lstsq(rows, says, rcond=None)
        out[:, j] += shift + (np.array(means, dtype=float) - center) @ by
    return out


def cloud(images, dimension, seed=0):
    generator = np.random.default_rng(seed)
    stretch = generator.normal(size=(dimension, dimension))
    return (generator.normal(size=(images, dimension)) @ stretch + 3).astype(np.float32)


@pytest.mark.parametrize("images", [1, 3, 40])
def test_means_go_where_the_formula_has_them(images):
    before = cloud(images, 6)
    after = before @ cloud(6, 6, 1) / 5 + cloud(images, 6, 2) / 10
    means = cloud(4, 6, 3)
    found = moved(torch.from_numpy(means), [movement(before, after)])
    expected = by_loops(means, before, after)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_units_add_up():
    before, after, means = cloud(30, 5), cloud(30, 5, 1), torch.from_numpy(cloud(3, 5, 2))
    whole = moved(means, [movement(before, after)])
    cuts = [(0, 7), (7, 7), (7, 30)]
    parts = [movement(before[a:b], after[a:b]) for a, b in cuts]
    torch.testing.assert_close(moved(means, parts), whole, rtol=1e-5, atol=1e-5)


def test_a_linear_map_of_everything_is_followed():
    """With many images, as closely as the prior's share of them allows."""
    dimension, images = 8, 20_000
    turned, _ = np.linalg.qr(cloud(dimension, dimension, 4))
    before, means = cloud(images, dimension), cloud(5, dimension, 5)
    after = (before @ turned + 2).astype(np.float32)
    found = moved(torch.from_numpy(means), [movement(before, after)])
    true = means @ turned + 2
    left = np.linalg.norm(found.numpy() - true) / np.linalg.norm(means - true)
    assert left < 0.05


def test_embeddings_that_stayed_move_nothing():
    before, means = cloud(20, 4), torch.from_numpy(cloud(3, 4, 1))
    assert torch.equal(moved(means, [movement(before, before)]), means)
    none = np.empty((0, 4), dtype=np.float32)
    assert torch.equal(moved(means, [movement(none, none)]), means)


def test_embeddings_all_the_same_move_means_alike():
    before = np.ones((6, 4), dtype=np.float32)
    means = torch.from_numpy(cloud(3, 4))
    found = moved(means, [movement(before, before + 2)])
    torch.testing.assert_close(found, means + 2)
