"""Which images are kept as exemplars, and the means that they are compared by.

`Twice`, `whole_class_order` and the like are known bugs of other implementations, written small:
the properties that ours has refuse them.
"""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from trainer.exemplars import drawn, herding, mean_directions


def vectors(seed, count, dimension=6):
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def are_greedy(embeddings, picked, slack=1e-9):
    """Whether each pick is as good as any that could be made then, by computing every candidate's
    mean. Of two images both are equally near their mean, but for rounding."""
    unit = [v.astype(float) / np.linalg.norm(v.astype(float)) for v in embeddings]
    mean = sum(unit) / len(unit)
    for number, pick in enumerate(picked):
        before = picked[:number]
        distances = {}
        for i in range(len(unit)):
            if i not in before:
                of_these = sum(unit[j] for j in [*before, i]) / (number + 1)
                distances[i] = float(((of_these - mean) ** 2).sum())
        if distances[pick] > min(distances.values()) + slack:
            return False
    return True


def with_repeats(embeddings, count):
    """The bug: what was picked is not taken out of the candidates."""
    unit = embeddings.astype(float) / np.linalg.norm(embeddings, axis=1, keepdims=True)
    mean, total, picked = unit.mean(axis=0), np.zeros(unit.shape[1]), []
    for k in range(count):
        distances = [(((total + v) / (k + 1) - mean) ** 2).sum() for v in unit]
        picked.append(int(np.argmin(distances)))
        total += unit[picked[-1]]
    return np.array(picked)


def picks_each_image_once(rule):
    return all(len(set(rule(vectors(seed, 9), 9).tolist())) == 9 for seed in range(20))


@hypothesis.given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 30))
def test_herding_is_what_trying_all_candidates_gives(seed, images, count):
    embeddings = vectors(seed, images)
    picked = herding(embeddings, count).tolist()
    assert len(set(picked)) == len(picked) == min(count, images)
    assert are_greedy(embeddings, picked)


def test_other_orders_are_not_greedy():
    embeddings = vectors(0, 9)
    assert not are_greedy(embeddings, herding(embeddings, 9).tolist()[::-1])


def test_no_image_is_picked_twice():
    assert picks_each_image_once(herding)
    assert not picks_each_image_once(with_repeats), "the property would not see the bug"


@pytest.mark.parametrize("count", [1, 3, 7])
def test_fewer_exemplars_are_the_first_of_more(count):
    embeddings, keys = vectors(3, 12), np.arange(12, dtype=np.uint64) * np.uint64(77)
    assert herding(embeddings, count).tolist() == herding(embeddings, 12)[:count].tolist()
    assert drawn(keys, count, 5).tolist() == drawn(keys, 12, 5)[:count].tolist()


def test_the_length_of_an_embedding_does_not_matter():
    embeddings = vectors(4, 15)
    longer = embeddings * np.linspace(0.1, 50, 15, dtype=np.float32)[:, None]
    assert herding(longer, 15).tolist() == herding(embeddings, 15).tolist()


def test_which_images_are_chosen_does_not_depend_on_their_order():
    embeddings, keys = vectors(5, 20), np.random.default_rng(0).integers(0, 2**63, 20).astype("u8")
    order = np.random.default_rng(1).permutation(20)
    assert order[herding(embeddings[order], 8)].tolist() == herding(embeddings, 8).tolist()
    assert order[drawn(keys[order], 8, 5)].tolist() == drawn(keys, 8, 5).tolist()
    assert drawn(keys, 8, 5).tolist() != drawn(keys, 8, 6).tolist(), "every seed draws alike"


def test_a_draw_takes_every_image_equally_often():
    keys = np.random.default_rng(2).integers(0, 2**63, 10).astype("u8")
    often = np.bincount(np.concatenate([drawn(keys, 3, seed) for seed in range(2000)]))
    assert (abs(often - 600) < 5 * np.sqrt(2000 * 0.3 * 0.7)).all()


def test_images_of_no_length_are_chosen_last_or_do_no_harm():
    """An embedding of zeros has no direction."""
    embeddings = np.zeros((4, 3), dtype=np.float32)
    assert herding(embeddings, 4).tolist() == [0, 1, 2, 3]


def test_means_are_those_of_unit_vectors_of_images_and_their_mirror_images():
    plain, mirrored = torch.randn(7, 4), torch.randn(7, 4)
    rows = torch.tensor([0, 1, 1, 2, 0, 2, 2])
    found = mean_directions([plain, mirrored], rows)
    for row in range(3):
        own = []
        for vector, other, label in zip(plain, mirrored, rows.tolist(), strict=True):
            if label == row:
                unit = vector.double() / vector.double().norm()
                unit_other = other.double() / other.double().norm()
                own.append((unit + unit_other) / 2)
        mean = sum(own) / len(own)
        torch.testing.assert_close(found[row].double(), mean / mean.norm(), rtol=1e-6, atol=1e-7)
    alone = mean_directions([plain], rows)
    torch.testing.assert_close(alone, mean_directions([plain, plain], rows))
    assert not torch.allclose(alone, found, atol=1e-3)
    with pytest.raises(ValueError, match="class 1 has no exemplar"):
        mean_directions([plain], rows.where(rows != 1, 2))
