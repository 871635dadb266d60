"""M(query model, gallery model) against its definition, one trial after the other."""

import numpy as np
import pytest

from data_shards.settings import InputError
from tests.trainer.compatibility.worlds import (
    distance,
    in_templates,
    mean_average_precision,
    model,
    tar,
    top1,
    tpir,
    world,
)
from trainer.evaluation.compatibility.measures import measure
from trainer.evaluation.compatibility.points import Point
from trainer.evaluation.compatibility.vectors import Embedded
from trainer.evaluation.retrieval import retrieve

NAMES = ("top1", "map", "tar@0.1", "tar@0.01", "tpir@0.2", "tpir@0.05")


def values(trials, query, gallery, names=NAMES):
    points = trials.points(names)
    outcome = measure(trials, query, gallery, points)
    ones = np.ones((1, len(trials.identities)), dtype=np.int64)
    return {p.name: float(outcome.figure(p).values(ones)[0]) for p in points}


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("seed", "dimensions"), [(1, (8, 8)), (2, (12, 8)), (3, (6, 10))])
def test_figures_equal_their_definitions(seed, dimensions, normalised):
    made = world(seed, normalised=normalised)
    query, gallery = (model(made, s, d) for s, d in zip((10, 11), dimensions, strict=True))
    found = values(made.trials, query, gallery)
    assert found["top1"] == pytest.approx(top1(made, query, gallery))
    assert found["map"] == pytest.approx(mean_average_precision(made, query, gallery))
    for name in NAMES[2:]:
        kind, rate = name.split("@")
        wanted = {"tar": tar, "tpir": tpir}[kind](made, query, gallery, float(rate))
        assert found[name] == pytest.approx(wanted), name
    assert 0 < found["tpir@0.05"] < found["tpir@0.2"] < found["top1"] < 1


def test_rank_one_and_map_are_those_of_the_evaluation():
    made = world(4)
    one, search = model(made, 1), made.trials.search
    of = made.trials.vectors(one, one.dimension).of
    found = retrieve(
        of(search.query),
        of(search.gallery),
        search.query_identity,
        search.gallery_identity,
        search.query_camera,
        search.gallery_camera,
    )
    ours = values(made.trials, one, one, ("top1", "map"))
    assert ours["top1"] == pytest.approx(found.cmc[0])
    assert ours["map"] == pytest.approx(found.mean_average_precision)


def test_templates_are_cut_to_the_shorter_model_before_they_are_normalised():
    made = world(5)
    trials, new, old = in_templates(made), model(made, 1, 12), model(made, 2, 8)

    def template(embedded, name, dimension):
        rows = trials.templates.sample[trials.templates.template == name]
        media = trials.templates.medium[trials.templates.template == name]
        parts = [embedded.vectors[rows[media == m], :dimension].mean(0) for m in set(media)]
        return np.sum(parts, axis=0)

    search, hits = trials.search, []
    for part in (0, 1):
        gallery = search.gallery[search.gallery_part == part]
        whom = search.gallery_identity[search.gallery_part == part]
        right = []
        for asked, own in zip(search.query, search.query_identity, strict=True):
            if own in whom:
                vector = template(new, asked, 8)
                near = [distance(vector, template(old, g, 8), True) for g in gallery]
                right.append(whom[int(np.argmin(near))] == own)
        hits.append(np.mean(right))
    assert values(trials, new, old, ("top1",))["top1"] == pytest.approx(np.mean(hits))
    names = np.unique(trials.templates.template)
    found = trials.vectors(new, 8).of(names).numpy()
    sums = np.array([template(new, name, 8) for name in names])
    np.testing.assert_allclose(found, sums / np.linalg.norm(sums, axis=1)[:, None], atol=1e-5)


def test_a_collapsed_model_finds_nothing():
    made = world(6)
    flat = Embedded(np.arange(len(made.identity)), np.ones((len(made.identity), 8), np.float32))
    assert set(values(made.trials, flat, flat, ("top1", "tar@0.1", "tpir@0.2")).values()) == {0.0}


def test_every_query_is_mated_in_at_most_one_half_of_the_gallery():
    search = world(7).trials.search
    halves = [set(search.gallery_identity[search.gallery_part == p].tolist()) for p in (0, 1)]
    assert not halves[0] & halves[1]
    assert abs(len(halves[0]) - len(halves[1])) <= 1
    assert (search.mated.sum(1) <= 1).all()
    assert not (search.mated & search.unmated).any()
    assert search.unmated[search.query_identity == 0].all()
    own = search.query_identity == 1  # its mates are all by its own camera: no trial of either kind
    assert not search.mated[own].any() and (search.unmated[own].sum(1) == 1).all()


def test_a_sample_without_an_embedding_is_named():
    made = world(8)
    short = Embedded(np.arange(20), np.ones((20, 8), np.float32))
    with pytest.raises(InputError, match="samples have no embedding"):
        measure(made.trials, short, short, made.trials.points(("top1",)))


@pytest.mark.parametrize("name", ["top2", "tar", "top1@0.1", "tar@0", "tar@1", "tpir@x", "far@0.1"])
def test_what_is_no_operating_point_is_refused(name):
    with pytest.raises(InputError, match="is no operating point"):
        Point.parse(name)


def test_a_rate_that_the_test_cannot_tell_names_the_smallest_that_it_can():
    trials = world(9).trials
    impostors = int((~trials.pairs.same).sum())
    with pytest.raises(InputError) as refused:
        trials.points(["top1", "tar@1e-4"])
    smallest = str(refused.value).rsplit(" ", 1)[1]
    assert f"{impostors} impostor trials, too few for tar@1e-4" in str(refused.value)
    assert 1 / impostors <= Point.parse(smallest).rate < 1.1 / impostors
    trials.points([smallest])


def test_points_that_need_what_a_test_lacks():
    made = world(10)
    with pytest.raises(InputError, match=r"has no pairs, which tar@0.1 needs"):
        in_templates(made).points(["tar@0.1"])
    with pytest.raises(InputError, match="there is no map"):
        in_templates(made).points(["map"])
    assert [point.name for point in in_templates(made).points(())] == ["top1"]
    assert [point.name for point in made.trials.points(())] == ["top1", "tar@1e-2"]
