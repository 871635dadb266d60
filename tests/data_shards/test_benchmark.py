import dataclasses

import numpy as np
import pytest

from data_shards.settings import InputError
from data_shards.sources import ROLES
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.benchmark_words import in_words
from trainer.evaluation import EvaluationSettings
from trainer.evaluation.protocol import evaluate, samples_to_embed

SETTINGS = BenchmarkSettings(steps=4, test_identities=22, pairs=200, seen_identities=5)


def test_steps_are_disjoint_equal_and_owned_by_contiguous_rows(small):
    benchmark = build_benchmark(small, SETTINGS)
    assert benchmark.row_ends == (10, 20, 29, 38)
    before = 0
    for samples, last in zip(benchmark.steps, benchmark.row_ends, strict=True):
        rows = benchmark.row_of_identity[small.identity[samples]]
        assert set(rows.tolist()) == set(range(before, last))
        before = last
    everything = np.concatenate([*benchmark.steps, benchmark.seen_query])
    assert len(np.unique(everything)) == len(everything) == 38 * 4


def test_tested_identities_are_in_no_step(small):
    benchmark = build_benchmark(small, SETTINGS)
    tested = np.unique(small.identity[np.concatenate([benchmark.query, benchmark.gallery])])
    assert len(tested) == 22
    assert (benchmark.row_of_identity[tested] == -1).all()


def test_queries_and_gallery_of_an_identity_share_no_camera(small):
    benchmark = build_benchmark(small, SETTINGS)
    for identity in np.unique(small.identity[benchmark.query]):
        asked = {small.camera[s] for s in benchmark.query if small.identity[s] == identity}
        held = {small.camera[s] for s in benchmark.gallery if small.identity[s] == identity}
        assert asked
        assert held
        assert not asked & held


def test_verification_folds_share_no_identity_and_truth_is_right(small):
    benchmark = build_benchmark(small, SETTINGS)
    left, right = small.identity[benchmark.pairs[:, 0]], small.identity[benchmark.pairs[:, 1]]
    assert ((left == right) == benchmark.same).all()
    assert benchmark.same.mean() == 0.5
    people = [set(left[benchmark.folds == f]) | set(right[benchmark.folds == f]) for f in range(10)]
    assert sum(map(len, people)) == len(set().union(*people))


def test_validation_identities_come_from_training_never_from_the_test(small):
    test = build_benchmark(small, SETTINGS)
    held = SETTINGS.model_copy(update={"evaluate": "validation", "validation_identities": 20})
    validation = build_benchmark(small, held)
    tested = set(small.identity[test.query].tolist())
    used = set(small.identity[np.concatenate([*validation.steps, validation.query])].tolist())
    assert not tested & used
    assert len(set(small.identity[validation.query].tolist())) == 20


def test_the_split_is_the_same_every_time_and_changes_with_the_seed(small):
    a, b = build_benchmark(small, SETTINGS), build_benchmark(small, SETTINGS)
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert all(map(np.array_equal, x, y)) if isinstance(x, tuple) else np.array_equal(x, y)
    other = build_benchmark(small, SETTINGS.model_copy(update={"seed": 1}))
    assert not np.array_equal(a.row_of_identity, other.row_of_identity)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_identities": 61}, "test_identities is 61, but only 60"),
        ({"train_identities": 39}, "train_identities is 39, but only 38"),
        ({"steps": 39}, r"38 identities cannot fill benchmark\.steps = 39"),
        ({"test_identities": 3}, "verification needs 4"),
    ],
)
def test_impossible_counts_are_explained(small, change, words):
    with pytest.raises(InputError, match=words):
        build_benchmark(small, SETTINGS.model_copy(update=change))


def test_an_identity_without_image_is_named(small):
    without = small.identity.copy()
    without[without == 7] = 8
    with pytest.raises(InputError, match=r"identity 'id-7' .* has no image"):
        build_benchmark(dataclasses.replace(small, identity=without), SETTINGS)


def test_identities_of_one_camera_are_trained_on_and_never_tested(small):
    camera = np.where(small.identity < 30, small.camera, 0)
    benchmark = build_benchmark(dataclasses.replace(small, camera=camera), SETTINGS)
    tested = small.identity[np.concatenate([benchmark.query, benchmark.gallery])]
    assert (tested < 30).all()
    assert (benchmark.row_of_identity[30:] >= 0).all()


@pytest.mark.parametrize("cameras", [2, 3])
def test_one_camera_is_always_left_to_be_found(small, cameras):
    few = dataclasses.replace(small, camera=small.camera % cameras)
    wanted = SETTINGS.model_copy(update={"query_cameras": 9})
    benchmark = build_benchmark(few, wanted)
    searched, held = (small.identity[part] for part in (benchmark.query, benchmark.gallery))
    assert set(searched) == set(held)
    for identity in set(held):
        assert len(set(few.camera[benchmark.gallery[held == identity]])) == 1


def test_the_tested_identities_change_with_the_seed(small):
    first, second = (
        build_benchmark(small, SETTINGS.model_copy(update={"seed": seed})) for seed in (0, 1)
    )
    assert set(small.identity[first.query]) != set(small.identity[second.query])


def test_the_image_held_out_of_step_0_is_any_one_and_not_searched_in(small):
    benchmark = build_benchmark(small, SETTINGS)
    assert len(benchmark.seen_query) == SETTINGS.seen_identities
    assert not set(benchmark.seen_query) & set(benchmark.seen_gallery)
    assert set(benchmark.seen_gallery) < set(benchmark.steps[0])
    people = small.identity[benchmark.seen_query]
    assert set(small.identity[benchmark.seen_gallery]) == set(people)
    places = [
        np.flatnonzero(small.identity == who).tolist().index(sample)
        for who, sample in zip(people, benchmark.seen_query, strict=True)
    ]
    assert len(set(places)) > 1


def test_an_only_image_is_not_held_out(small):
    alone = np.flatnonzero(small.identity < 40)[::4]
    keep = np.sort(np.concatenate([alone, np.flatnonzero(small.identity >= 40)]))
    columns = ("shard", "offset", "size", "identity", "camera", "role", "crc32")
    few = dataclasses.replace(small, **{name: getattr(small, name)[keep] for name in columns})
    settings = BenchmarkSettings(steps=1, test_identities=20, pairs=20, seen_identities=40)
    benchmark = build_benchmark(few, settings)
    assert len(benchmark.seen_query) == 0
    assert set(few.identity[benchmark.steps[0]]) == set(range(40))


def test_a_step_has_its_own_samples_or_all_so_far(small):
    benchmark = build_benchmark(small, SETTINGS)
    assert np.array_equal(benchmark.step_samples(2, False), benchmark.steps[2])
    assert np.array_equal(benchmark.step_samples(2, True), np.concatenate(benchmark.steps[:3]))


def test_identities_that_cannot_be_validated_on_stay_in_training(small):
    camera = np.where(small.identity < 50, small.camera, 0)
    wanted = {"evaluate": "validation", "validation_identities": 20, "steps": 2}
    benchmark = build_benchmark(
        dataclasses.replace(small, camera=camera), SETTINGS.model_copy(update=wanted)
    )
    assert (benchmark.row_of_identity[50:] >= 0).all()
    assert benchmark.row_ends[-1] == 60 - 22 - 20


def without_cameras(dataset):
    """`dataset`, as a folder of photographs is imported: nobody says who took them."""
    manifest = {**dataset.manifest, "cameras": ["unknown"]}
    return dataclasses.replace(dataset, manifest=manifest, camera=0 * dataset.camera)


@pytest.mark.reliability(16, "photographs without cameras are split image by image")
@pytest.mark.parametrize("queries", ["cameras", "images"])
def test_without_cameras_some_images_of_each_identity_are_queries(small, queries):
    photos = without_cameras(small) if queries == "cameras" else small
    benchmark = build_benchmark(photos, SETTINGS.model_copy(update={"queries": queries}))
    query, gallery = (small.identity[part] for part in (benchmark.query, benchmark.gallery))
    assert set(np.unique(query, return_counts=True)[1]) == {2}
    assert np.array_equal(np.unique(query), np.unique(gallery))
    assert not set(benchmark.query) & set(benchmark.gallery)
    again = build_benchmark(photos, SETTINGS.model_copy(update={"queries": queries}))
    assert np.array_equal(benchmark.query, again.query)
    places = {np.flatnonzero(small.identity == i).tolist().index(q)
              for i, q in zip(query, benchmark.query, strict=True)}  # fmt: skip
    assert places == {0, 1, 2, 3}
    settings = EvaluationSettings()
    samples = samples_to_embed(benchmark)
    embeddings = np.eye(len(small.names), dtype=np.float32)[small.identity[samples]]
    found = evaluate(photos, benchmark, samples, embeddings, settings)
    assert (found["queries_without_match"], found["top1"], found["seen_top1"]) == (0, 1, 1)


@pytest.mark.reliability(16, "who cannot be tested on is told with the rule and what would help")
def test_the_rule_that_nobody_meets_is_named(small):
    """One camera took everything: that is known, so that images are not drawn unasked."""
    manifest = {**small.manifest, "cameras": ["front door"]}
    door = dataclasses.replace(small, manifest=manifest, camera=0 * small.camera)
    words = (
        "only 0 identities qualify of 60, each needs images from two cameras: lower it, or "
        "benchmark.queries=images asks for two images only, which 60 identities have"
    )
    with pytest.raises(InputError, match=words):
        build_benchmark(door, SETTINGS)
    build_benchmark(door, SETTINGS.model_copy(update={"queries": "images"}))


def test_few_tested_identities_make_fewer_folds(small):
    benchmark = build_benchmark(small, SETTINGS.model_copy(update={"test_identities": 7}))
    assert np.unique(benchmark.folds).tolist() == [0, 1, 2]
    assert len(benchmark.pairs) == 198


def test_a_fifth_of_the_identities_is_tested_unless_said_otherwise(small):
    benchmark = build_benchmark(small, BenchmarkSettings(steps=2))
    assert len(set(small.identity[benchmark.query])) == 12
    assert benchmark.row_ends[-1] == 48


@pytest.mark.reliability(20, "a run says at its start how many are learned, tested, or left out")
def test_newcomers_kept_for_testing_are_counted_aloud(small):
    known = [f"id-{i}" for i in range(10)]
    settings = SETTINGS.model_copy(update={"steps": 1, "test_identities": 40})
    told = list(in_words(small, settings, build_benchmark(small, settings, known), 10))
    assert told[0] == "10 identities are learned, 40 kept for testing (benchmark.test_identities)"
    assert told[1].startswith("more identities are kept for testing than are learned: lower")
    few = settings.model_copy(update={"test_identities": None, "train_identities": 20})
    photos = without_cameras(small)
    told = list(in_words(photos, few, build_benchmark(photos, few, known), 10))
    assert told[0].startswith("20 identities are learned, 10 kept for testing")
    assert told[1] == "20 identities of the dataset are neither learned nor tested"
    assert told[2].startswith("no image says which camera took it")
    assert told[3] == "verification has 5 folds, not 10: so few identities are tested"


def test_what_is_lowered_or_not_used_is_told(small):
    """Every fourth image has another role."""
    role = np.where(np.arange(len(small)) % 4 == 3, ROLES.index("distractor"), small.role)
    settings = SETTINGS.model_copy(update={"steps": 1, "seen_identities": 500})
    dataset = dataclasses.replace(small, role=role.astype(small.role.dtype))
    told = list(in_words(dataset, settings, build_benchmark(dataset, settings), 0))
    assert any("forgetting is measured on 38 identities of step 0" in line for line in told)
    assert told[-1] == "60 images have another role than train (distractor) and are not used"
