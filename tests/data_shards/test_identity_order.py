"""P identities × K images: what each batch, round of identities and identity holds."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.orders.identity_order import IdentityOrder
from data_shards.orders.order import IdentitySettings, make_order, rank_slice

images_of = st.lists(st.integers(1, 11), min_size=1, max_size=30)


def people(counts):
    """Samples in no particular order, and who is on each."""
    identity = np.repeat(np.arange(len(counts)) * 3 + 7, counts)
    order = np.random.default_rng(0).permutation(len(identity))
    return 1000 + order, identity[order]


@given(images_of, st.integers(1, 5), st.integers(1, 8), st.integers(0, 9))
def test_groups_hold_one_identity_and_batches_no_identity_twice(counts, k, p, seed):
    samples, identity = people(counts)
    order = IdentityOrder(samples, identity, k, p * k, seed)
    who = dict(zip(samples.tolist(), identity.tolist(), strict=True))
    drawn = order.at(np.arange(20 * p * k))
    groups = np.array([who[s] for s in drawn.tolist()]).reshape(-1, k)
    assert (groups == groups[:, :1]).all()
    for batch in groups[:, 0].reshape(-1, p):
        times = Counter(batch.tolist()).values()
        assert max(times) <= -(-p // len(counts))
    for group in drawn.reshape(-1, k).tolist():
        own = counts[(who[group[0]] - 7) // 3]
        assert len(set(group)) == min(k, own)


@given(images_of, st.integers(1, 5), st.integers(1, 8))
def test_every_identity_comes_once_a_round_and_uses_up_its_images(counts, k, p):
    samples, identity = people(counts)
    order = IdentityOrder(samples, identity, k, p * k, 3)
    who = dict(zip(samples.tolist(), identity.tolist(), strict=True))
    drawn = order.at(np.arange(13 * len(counts) * k)).tolist()
    images = defaultdict(list)
    for start in range(0, len(drawn), len(counts) * k):
        once = [who[s] for s in drawn[start : start + len(counts) * k : k]]
        assert len(set(once)) == len(counts)
    for sample in drawn:
        images[who[sample]].append(sample)
    for own in images.values():
        count = len(set(own))
        for start in range(0, len(own) - count + 1, count):
            assert len(set(own[start : start + count])) == count


@given(images_of, st.lists(st.integers(0, 10**9), min_size=1, max_size=40))
def test_any_position_alone_gives_the_same_sample(counts, positions):
    """Nothing is remembered: resuming is starting at a position."""
    samples, identity = people(counts)
    order = IdentityOrder(samples, identity, 4, 16, 1)
    together = order.at(np.array(positions))
    fresh = IdentityOrder(samples, identity, 4, 16, 1)
    assert [int(fresh.at(np.array([p]))[0]) for p in positions] == together.tolist()


def test_ranks_of_any_world_tile_the_batches():
    samples, identity = people([5] * 40)
    whole = IdentityOrder(samples, identity, 4, 32, 1).at(np.arange(320)).reshape(-1, 32)
    for world in (1, 2, 3, 5, 32):
        order = IdentityOrder(samples, identity, 4, 32, 1)
        parts = []
        for rank in range(world):
            own = rank_slice(32, rank, world)
            positions = np.arange(10)[:, None] * 32 + np.arange(own.start, own.stop)
            parts.append(order.at(positions.ravel()).reshape(10, -1))
        assert np.array_equal(np.concatenate(parts, axis=1), whole)


@given(images_of, st.integers(1, 5))
def test_a_sample_that_comes_again_does_so_in_another_epoch(counts, k):
    """So that it is augmented anew, within a group of fewer than K images, too."""
    samples, identity = people(counts)
    order = IdentityOrder(samples, identity, k, 4 * k, 3)
    positions = np.arange(10 * len(counts) * k)
    seen = list(zip(order.at(positions).tolist(), order.epoch(positions).tolist(), strict=True))
    assert len(set(seen)) == len(seen)


def test_a_skipped_sample_gives_way_to_its_identity_and_then_to_others():
    samples, identity = people([9] * 5)
    order = IdentityOrder(samples, identity, 4, 8, 0)
    who = dict(zip(samples.tolist(), identity.tolist(), strict=True))
    tried = [int(order.at(np.array([5]), np.array([s]))[0]) for s in range(9 * 8)]
    assert len({who[s] for s in tried[:8]}) == 1
    assert len(set(tried[:8])) > 4
    assert {who[s] for s in tried} == set(identity.tolist())


def test_a_batch_that_k_does_not_divide_is_refused():
    samples, identity = people([3, 3])
    settings = IdentitySettings(kind="identities")
    with pytest.raises(ValueError, match="batch of 30 cannot be made of 4 images an identity"):
        make_order(settings, samples - 1000, identity, identity, 30, 0)
