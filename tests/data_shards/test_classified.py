"""Test images of identities that are learned, where the benchmark is drawn."""

import numpy as np
import pytest

from data_shards.settings import InputError
from data_shards.sources import UNKNOWN_CAMERA, SourceImage
from data_shards.splits.benchmark import build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.benchmark_words import in_words
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from launch.config.run import RunConfig
from tests.conftest import jpeg
from trainer.evaluation.protocol import samples_to_embed

CLASSES, IMAGES = 12, 5
ALONE = {"steps": 4, "test_identities": 0, "seen_identities": 0, "classified": "query"}
TESTED = {"steps": 2, "test_identities": 4, "pairs": 20, "queries": "role"}


def written(folder, tested):
    """A dataset of `CLASSES`: of each, of its `IMAGES`, those that `tested(class, n)` are of role
    query."""
    images = [
        SourceImage(jpeg(c, n), f"c{c:02d}", UNKNOWN_CAMERA, f"{c}/{n}", role)
        for c in range(CLASSES)
        for n in range(IMAGES)
        for role in ["query" if tested(c, n) else "train"]
    ]
    write_dataset(images, folder, {})
    return ShardDataset.open(folder)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Class c has 1 + c % 3 test images, and others between them."""
    return written(tmp_path_factory.mktemp("classes") / "d", lambda c, n: n % 4 <= c % 3)


def by_hand(dataset, benchmark):
    """Of each step the query images of its identities, sample by sample."""
    steps = [[] for _ in benchmark.row_ends]
    for sample in range(len(dataset)):
        row = benchmark.row_of_identity[dataset.identity[sample]]
        if dataset.role[sample] == 1 and row >= 0:
            steps[next(t for t, end in enumerate(benchmark.row_ends) if row < end)].append(sample)
    return steps


@pytest.mark.parametrize("first_share", [None, 0.5])
def test_the_query_images_of_each_steps_classes_are_classified(classes, first_share):
    benchmark = build_benchmark(classes, BenchmarkSettings(**ALONE, first_share=first_share))
    assert benchmark.row_ends == ((3, 6, 9, 12) if first_share is None else (6, 8, 10, 12))
    assert [own.tolist() for own in benchmark.classified] == by_hand(classes, benchmark)
    assert sum(map(len, benchmark.classified)) == sum((classes.role == 1).tolist())
    trained = {int(s) for own in benchmark.steps for s in own}
    assert not trained & {int(s) for own in benchmark.classified for s in own}
    assert samples_to_embed(benchmark).tolist() == sorted(
        int(s) for own in benchmark.classified for s in own
    )


def test_identities_that_are_tested_otherwise_are_not_classified(classes):
    settings = BenchmarkSettings(**TESTED, classified="query")
    benchmark = build_benchmark(classes, settings)
    kept = set(classes.identity[benchmark.query].tolist())
    classified = [classes.identity[s] for own in benchmark.classified for s in own]
    assert len(kept) == 4 and not kept & set(classified) and len(set(classified)) == 8
    assert [own.tolist() for own in benchmark.classified] == by_hand(classes, benchmark)


def test_nothing_is_classified_unless_it_is_asked_for(classes):
    plain = build_benchmark(classes, BenchmarkSettings(**TESTED))
    assert plain.classified == ()


def test_a_class_without_a_test_image_is_named_with_the_remedy(tmp_path):
    dataset = written(tmp_path / "d", lambda c, n: n == 0 and c not in (3, 7))
    with pytest.raises(InputError, match=r"2 of 12 have none, such as 'c03': .*classified=none"):
        build_benchmark(dataset, BenchmarkSettings(**ALONE))
    build_benchmark(dataset, BenchmarkSettings(**{**ALONE, "classified": "none"}))


def test_classes_known_before_are_classified_as_far_as_they_are_there(classes):
    settings = BenchmarkSettings(**{**ALONE, "steps": 2})
    benchmark = build_benchmark(classes, settings, ["c05", "gone", "c00"])
    assert benchmark.row_ends == (3, 8, 13)
    assert [own.tolist() for own in benchmark.classified] == by_hand(classes, benchmark)
    assert {classes.names[classes.identity[s]] for s in benchmark.classified[0]} == {"c00", "c05"}


def test_words_say_what_is_classified_and_leave_nothing_idle(classes):
    settings = BenchmarkSettings(**ALONE)
    told = list(in_words(classes, settings, build_benchmark(classes, settings), 0))
    assert told == [
        "12 identities are learned, 0 kept for testing (benchmark.test_identities)",
        f"{int((classes.role == 1).sum())} images with role query of the identities learned are "
        "classified",
    ]


def test_fingerprints_of_before_do_not_have_the_key():
    assert "classified" not in BenchmarkSettings().deciding()
    assert BenchmarkSettings(classified="query").deciding()["classified"] == "query"


def test_no_test_identities_are_needed_where_learned_ones_are_classified(tmp_path):
    values = {"dataset": str(tmp_path), "methods": {"finetune": {}}, "benchmark": dict(ALONE)}
    RunConfig.model_validate(values)
    values["benchmark"]["classified"] = "none"
    with pytest.raises(ValueError, match=r"benchmark\.classified=query"):
        RunConfig.model_validate(values)
    values["benchmark"] = {"file": "b.json", "classified": "query"}
    with pytest.raises(ValueError, match=r"classified is decided by benchmark\.file"):
        RunConfig.model_validate(values)


HELD = ALONE | {"classified": "held-out"}


def test_held_out_images_are_a_fifth_of_each_classes_and_not_trained_on(tmp_path):
    """Those with role query, which are test images, are neither."""
    classes = written(tmp_path / "d", lambda c, n: n == 0)
    benchmark = build_benchmark(classes, BenchmarkSettings(**HELD))
    held = np.concatenate(benchmark.classified)
    trained = np.concatenate(benchmark.steps)
    assert not np.isin(held, trained).any() and (classes.role[held] == 0).all()
    assert sorted([*held, *trained]) == np.flatnonzero(classes.role == 0).tolist()
    for identity in range(CLASSES):
        of_role_train = int(((classes.identity == identity) & (classes.role == 0)).sum())
        assert (classes.identity[held] == identity).sum() == max(1, round(of_role_train / 5))
    for step, own in enumerate(benchmark.classified):
        first, last = (0, *benchmark.row_ends)[step : step + 2]
        rows = benchmark.row_of_identity[classes.identity[own]]
        assert ((first <= rows) & (rows < last)).all()
    other = build_benchmark(classes, BenchmarkSettings(**HELD, seed=1))
    assert not np.array_equal(np.sort(held), np.sort(np.concatenate(other.classified)))


def test_no_cameras_images_are_both_held_out_and_trained_on(tmp_path):
    """Near-duplicates would be: photographs of a burst, or a font's variants."""
    images = [
        SourceImage(jpeg(c, 7 * n + k), f"c{c:02d}", f"camera {n}", f"{c}/{n}/{k}", "train")
        for c in range(4)
        for n in range(5)
        for k in range(3)
    ]
    write_dataset(images, tmp_path / "d", {})
    dataset = ShardDataset.open(tmp_path / "d")
    settings = BenchmarkSettings(**{**HELD, "steps": 2})
    benchmark = build_benchmark(dataset, settings)
    held, trained = np.concatenate(benchmark.classified), np.concatenate(benchmark.steps)
    for identity in range(4):
        sides = [dataset.camera[own[dataset.identity[own] == identity]] for own in (held, trained)]
        assert len(sides[0]) == 3 and len(sides[1]) == 12
        assert not np.intersect1d(*sides).size


def test_a_class_with_one_image_cannot_hold_any_out(tmp_path):
    dataset = written(tmp_path / "d", lambda c, n: c == 5 and n > 0)
    with pytest.raises(InputError, match=r"held-out .* 'c05' has no others to train on: leave it"):
        build_benchmark(dataset, BenchmarkSettings(**HELD))
