"""Backfill curves against re-embedding a gallery in fact, flips, and the whole comparison."""

import numpy as np
import pytest

from data_shards.settings import InputError
from tests.trainer.compatibility.worlds import accepted, distance, in_templates, model, tpir, world
from trainer.evaluation.compatibility import CompatibilitySettings
from trainer.evaluation.compatibility.backfill import (
    SHARES,
    curves,
    gallery_identities,
    isolated_first,
    mixtures,
)
from trainer.evaluation.compatibility.comparison import compare
from trainer.evaluation.compatibility.flips import flips
from trainer.evaluation.compatibility.measures import measure
from trainer.evaluation.compatibility.vectors import Embedded

NAMES = [f"id-{i}" for i in range(100)]


def mixed(made, old, new, done, asked, row):
    """The distance of a new query to a gallery image, old unless its identity is among `done`."""
    stored = new if made.identity[row] in done else old
    return distance(new.vectors[asked], stored.vectors[row], made.trials.normalised)


def mixed_top1(made, old, new, done):
    search, hits = made.trials.search, []
    for asked in search.query:
        own, by = made.identity[asked], made.camera[asked]
        rows = [g for g in search.gallery if not (made.identity[g] == own and made.camera[g] == by)]
        if own in made.identity[rows]:
            near = [mixed(made, old, new, done, asked, row) for row in rows]
            hits.append(made.identity[rows[int(np.argmin(near))]] == own)
    return float(np.mean(hits))


def mixed_tar(made, old, new, done, rate):
    pairs = made.trials.pairs
    sides = zip(pairs.left, pairs.right, strict=True)
    score = -np.array([mixed(made, old, new, done, a, b) for a, b in sides])
    return accepted(score[pairs.same], score[~pairs.same], rate)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("dimensions", [(8, 8), (6, 10), (10, 6)])
def test_a_curve_is_what_re_embedding_gives(dimensions, normalised):
    made = world(3, normalised=normalised)
    old, new = (model(made, s, d) for s, d in zip((1, 2), dimensions, strict=True))
    people = gallery_identities(made.trials)
    order = np.random.default_rng(0).permutation(people)
    points = made.trials.points(["top1", "tar@0.1", "tpir@0.2"])
    (steps,) = mixtures(made.trials, old, new, points, [order])
    ones = np.ones((1, len(made.trials.identities)), dtype=np.int64)
    for k in (0, 1, 13, 25, 40, 50):
        done = set(order[: int(np.floor(SHARES[k] * len(order) + 0.5))].tolist())
        found = [float(steps[k].figure(point).values(ones)[0]) for point in points]
        assert found[0] == pytest.approx(mixed_top1(made, old, new, done))
        assert found[1] == pytest.approx(mixed_tar(made, old, new, done, 0.1))
    assert found[2] == pytest.approx(tpir(made, new, new, 0.2))
    start = [float(steps[0].figure(point).values(ones)[0]) for point in points]
    assert start[2] == pytest.approx(tpir(made, new, old, 0.2))


def test_curves_begin_and_end_at_the_comparisons_figures():
    made = world(4)
    for trials, names in ((made.trials, ["top1", "tar@0.1"]), (in_templates(made), ["top1"])):
        settings = CompatibilitySettings(at=tuple(names), resamples=100)
        found = compare(trials, model(made, 1), model(made, 2, 12), None, settings, NAMES)
        assert [curve["point"] for curve in found["backfill"]] == names
        for point, curve in zip(found["points"], found["backfill"], strict=True):
            for line in (*curve["random"].values(), curve["isolated"]):
                assert len(line) == len(curve["share"]) == 51
                assert line[0] == pytest.approx(point["new_old"])
                assert line[-1] == pytest.approx(point["new_new"])
            assert (np.array(curve["random"]["least"]) <= curve["random"]["most"]).all()


def test_map_has_no_curve():
    made = world(4)
    assert curves(made.trials, model(made, 1), model(made, 2), made.trials.points(["map"])) == []


def test_those_far_from_everybody_are_re_embedded_first():
    made = world(5)
    old, search = model(made, 1), world(5).trials.search
    gallery = np.unique(np.concatenate([search.gallery, made.trials.pairs.right]))
    nearest = {}
    for who in np.unique(made.identity[gallery]):
        own, others = (
            gallery[made.identity[gallery] == who],
            gallery[made.identity[gallery] != who],
        )
        nearest[int(who)] = min(
            distance(old.vectors[a], old.vectors[b], True) for a in own for b in others
        )
    order = isolated_first(made.trials, old).tolist()
    assert order == sorted(nearest, key=lambda who: -nearest[who])


def test_flips_are_counted_by_identity():
    identity = np.array([0, 0, 0, 1, 1, 3, 3])
    before = np.array([1, 1, 0, 1, 0, 0, 1], dtype=bool)
    after = np.array([0, 0, 1, 1, 1, 1, 0], dtype=bool)
    found = flips(identity, before, after, NAMES)
    assert (found["negative"], found["positive"]) == (3, 3)
    assert (found["right_before"], found["right_after"], found["trials"]) == (4, 4, 7)
    assert (found["identities"], found["worse"], found["better"]) == (3, 1, 1)
    assert found["worst"] == [{"identity": "id-0", "trials": 3, "lost": 2, "won": 1}]


def test_pairs_flip_where_each_model_decides_at_its_own_threshold():
    made = world(6)
    old, new = model(made, 1, noise=0.9), model(made, 2, noise=0.7)
    settings = CompatibilitySettings(at=("tar@0.3",), resamples=100)
    found, decided = compare(made.trials, old, new, None, settings, NAMES)["flips"], []
    pairs = made.trials.pairs
    for query in (old, new):
        score = -np.array(
            [
                distance(query.vectors[a], old.vectors[b], True)
                for a, b in zip(pairs.left, pairs.right, strict=True)
            ]
        )
        impostor = np.sort(score[~pairs.same])[::-1]
        too_many = impostor[int(0.3 * len(impostor))]
        decided.append((score > too_many) == pairs.same)
    right = [int(one.sum()) for one in decided]
    assert [found["right_before"], found["right_after"]] == right
    assert found["negative"] == (decided[0] & ~decided[1]).sum() > 20
    assert found["positive"] == (~decided[0] & decided[1]).sum() > 20


def test_a_better_model_in_the_same_space_holds_and_an_independent_one_does_not():
    made = world(7, people=80)
    old, better = model(made, 1, noise=1.0), model(made, 2, noise=0.3)
    draw = np.random.default_rng(3)
    turn = np.linalg.qr(draw.normal(size=(8, 8)))[0].astype(np.float32)
    elsewhere = Embedded(better.samples, better.vectors @ turn)
    settings = CompatibilitySettings(at=("top1", "tar@0.05"))
    assert compare(made.trials, old, better, better, settings, NAMES)["holds"]
    found = compare(made.trials, old, elsewhere, better, settings, NAMES)
    assert not found["holds"]
    assert found["points"][0]["new_old"] < 0.1 < found["points"][0]["new_new"]
    assert found["points"][0]["old_new"] < 0.1
    back = compare(made.trials, better, old, None, settings, NAMES)["points"]
    ahead = compare(made.trials, old, better, None, settings, NAMES)["points"]
    for one, other in zip(back, ahead, strict=True):
        assert one["old_new"] == other["new_old"] != other["old_new"]
    same = compare(made.trials, old, old, better, settings, NAMES)
    assert not same["holds"] and same["points"][0]["lower"] == 0


def test_a_diverged_model_is_an_error():
    made = world(8)
    old = model(made, 1)
    bad = Embedded(old.samples, np.full_like(old.vectors, np.nan))
    with pytest.raises(InputError, match="NaN or infinite"):
        measure(made.trials, bad, old, made.trials.points(["top1"]))
