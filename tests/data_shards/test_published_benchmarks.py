"""The papers' benchmarks: who is in which step and what is tested, checked by brute force."""

import dataclasses
import random
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.settings import InputError
from data_shards.sources import ROLES, SourceImage
from data_shards.splits.benchmark import build_benchmark, counted_split
from data_shards.splits.benchmark_file import BenchmarkFile, place, read_benchmark, write_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.splits.published_benchmarks import (
    bct_face,
    class_incremental,
    crl_face,
    crl_person,
)
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from launch.config.load import differences, load_config
from tests.conftest import jpeg

JPEG = jpeg(0, 0)


def image(identity: str, camera: int, number: int, role: str) -> SourceImage:
    key = f"{role}/{identity}_{camera}_{number}"
    return SourceImage(JPEG, identity, f"c{camera}", key, role)


def faces() -> list[SourceImage]:
    """53 identities with one to four images."""
    return [image(f"p{i:02d}", 0, n, "train") for i in range(53) for n in range(1 + i % 4)]


def persons() -> list[SourceImage]:
    """A divided set: 23 training identities, 6 with queries, 4 only in the gallery, distractors."""
    views = [
        ("train", range(23), range(3), range(2)),
        ("query", range(100, 106), range(3), range(2)),
        ("gallery", range(100, 106), range(1, 5), range(3)),
        ("gallery", range(200, 204), range(2), range(2)),
        ("distractor", range(300, 301), range(4), range(2)),
    ]
    return [
        image(f"m/{i}", camera, number, role)
        for role, identities, cameras, numbers in views
        for i, camera, number in product(identities, cameras, numbers)
    ]


def classes() -> list[SourceImage]:
    """A hundred classes with two training images and one test image."""
    chosen = list(range(100))
    random.Random(3).shuffle(chosen)
    roles = [("train", 2), ("query", 1)]
    return [
        image(f"class-{c:02d}", 0, n, role)
        for role, count in roles
        for c in chosen
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Writes images as a dataset once each."""
    made: dict[str, ShardDataset] = {}

    def build(name: str, images: list[SourceImage]) -> ShardDataset:
        if name not in made:
            folder = tmp_path_factory.mktemp("protocols") / name
            write_dataset(images, folder, {})
            made[name] = ShardDataset.open(folder)
        return made[name]

    return build


def draw(dataset: ShardDataset, which: str, seed: int = 0) -> BenchmarkFile:
    return {
        "crl-face": lambda: crl_face(dataset, 5, seed, 4),
        "crl-person": lambda: crl_person(dataset, 5, seed),
        "bct-face": lambda: bct_face(dataset, [25, 50, 100], seed),
        "class-incremental": lambda: class_incremental(dataset, 5),
    }[which]()


SOURCES = {
    "crl-face": faces,
    "crl-person": persons,
    "bct-face": faces,
    "class-incremental": classes,
}


@pytest.mark.parametrize("which", SOURCES)
def test_a_file_depends_on_names_alone_and_not_on_the_order_of_import(make, tmp_path, which):
    images = SOURCES[which]()
    for name, order in {"straight": images, "turned": images[::-1]}.items():
        write_benchmark(draw(make(f"{which} {name}", order), which), tmp_path / name)
    assert (tmp_path / "straight").read_bytes() == (tmp_path / "turned").read_bytes()
    assert (tmp_path / "straight").read_bytes().count(b"\n") > 20
    file = read_benchmark(tmp_path / "straight")
    assert file == draw(make(f"{which} straight", images), which)


@pytest.mark.parametrize("which", SOURCES)
def test_no_identity_is_in_two_steps_nor_both_trained_and_tested(make, tmp_path, which):
    dataset = make(f"{which} straight", SOURCES[which]())
    path = tmp_path / "b.json"
    write_benchmark(draw(dataset, which), path)
    read = read_benchmark(path)
    chosen = BenchmarkSettings(file=path, steps=len(read.steps))
    benchmark = build_benchmark(dataset, chosen)
    seen: set[int] = set()
    for step, samples in enumerate(benchmark.steps):
        own = set(dataset.identity[samples].tolist())
        assert own and not own & seen
        assert (dataset.role[samples] == ROLES.index("train")).all()
        first, last = benchmark.rows_before(step), benchmark.row_ends[step]
        assert {first <= r < last for r in benchmark.row_of_identity[list(own)].tolist()} == {True}
        assert [
            dataset.names[np.flatnonzero(benchmark.row_of_identity == r)[0]]
            for r in range(first, last)
        ] == (list(read.steps[step]))
        seen |= own
    tested = np.concatenate([benchmark.query, benchmark.gallery])
    assert not seen & set(dataset.identity[tested].tolist())
    trained = np.concatenate(benchmark.steps)
    assert len(np.unique(trained)) == len(trained)
    held = np.concatenate([tested, benchmark.seen_query, *benchmark.classified])
    assert not set(held.tolist()) & set(trained.tolist())


def test_crl_face_learns_every_identity_in_equal_random_steps(make):
    dataset = make("crl-face straight", faces())
    file = crl_face(dataset, 5, 0, 4)
    assert [len(step) for step in file.steps] == [11, 11, 11, 10, 10]
    assert sorted(sum(file.steps, ())) == sorted(dataset.names)
    assert list(file.steps[0]) != sorted(file.steps[0])
    assert crl_face(dataset, 5, 1, 4).steps != file.steps
    assert len(crl_face(dataset, 10, 0, 4).steps) == 10
    with pytest.raises(InputError, match="for 53 learning steps, not for 54"):
        crl_face(dataset, 54, 0, 4)


def test_crl_face_holds_out_one_image_of_identities_of_step_0_that_have_more(make):
    dataset = make("crl-face straight", faces())
    file = crl_face(dataset, 5, 0, 4)
    people = [key.split("/")[1].split("_")[0] for key in file.seen]
    assert len(set(people)) == 4
    assert set(people) <= set(file.steps[0])
    assert all(int(who[1:]) % 4 for who in people)
    every = crl_face(dataset, 5, 0, 99).seen
    assert len(every) == sum(int(who[1:]) % 4 > 0 for who in file.steps[0])


def test_crl_person_keeps_query_identities_and_an_image_a_camera(make):
    """Against the rules of the paper, one by one."""
    images = persons()
    file = crl_person(make("crl-person straight", images), 5, 0)
    asked = {i.identity for i in images if i.role == "query"}
    for role, kept in {"query": file.query, "gallery": file.gallery}.items():
        groups = {}
        for i in images:
            if i.role == role and i.identity in asked:
                groups.setdefault((i.identity, i.camera), []).append(i.key)
        assert len(kept) == len(groups)
        for keys in groups.values():
            assert len(set(keys) & set(kept)) == 1
        firsts = sum(keys[0] in kept for keys in groups.values())
        assert 0 < firsts < len(groups)
    assert sorted(sum(file.steps, ())) == sorted({i.identity for i in images if i.role == "train"})
    assert [len(step) for step in file.steps] == [5, 5, 5, 4, 4]
    other = crl_person(make("crl-person straight", images), 5, 1)
    assert other.query != file.query


def test_a_test_set_that_is_reduced_already_stays_whole(make):
    images = persons()
    file = crl_person(make("crl-person straight", images), 5, 0)
    kept = {*file.query, *file.gallery}
    reduced = [i for i in images if i.role == "train" or i.key in kept]
    again = crl_person(make("reduced", reduced), 5, 7)
    assert (again.query, again.gallery) == (file.query, file.gallery)


def test_a_split_file_decides_the_steps(make):
    dataset = make("crl-person straight", persons())
    split = [[f"m/{n}" for n in range(20)], [f"m/{n}" for n in range(20, 23)]]
    assert crl_person(dataset, 2, 0, split).steps == tuple(map(tuple, split))
    with pytest.raises(InputError, match="1 are only in the file, 0 only in the dataset"):
        crl_person(dataset, 2, 0, [*split[:1], [*split[1], "m/77"]])
    with pytest.raises(InputError, match=r"0 are only in the file, 3 only .* such as 'm/20'"):
        crl_person(dataset, 1, 0, split[:1])
    with pytest.raises(InputError, match="for 2 learning steps, not for 5"):
        crl_person(dataset, 5, 0, split)


def test_crl_person_needs_queries(make):
    with pytest.raises(InputError, match="no images with role query"):
        crl_person(make("crl-face straight", faces()), 5, 0)


def test_bct_subsets_grow_and_are_random(make):
    dataset = make("crl-face straight", faces())
    file = bct_face(dataset, [25, 50, 100], 0)
    assert [len(step) for step in file.steps] == [13, 13, 27]
    assert bct_face(dataset, [50, 100], 0).steps[0] == file.steps[0] + file.steps[1]
    assert bct_face(dataset, [25, 50], 0).steps == file.steps[:2]
    for percents in ([50, 25], [0, 100], [50, 101], [50, 50]):
        with pytest.raises(InputError, match="must ascend"):
            bct_face(dataset, percents, 0)


def test_classes_come_in_the_order_that_the_field_draws_with_seed_1993(make):
    """Half first, then equal tasks; the first classes of CIFAR-100 as many papers' logs show."""
    file = class_incremental(make("class-incremental straight", classes()), 10)
    assert [len(step) for step in file.steps] == [50] + [5] * 10
    order = [int(name.removeprefix("class-")) for step in file.steps for name in step]
    assert order[:10] == [68, 56, 78, 8, 23, 84, 90, 65, 74, 76]
    assert order[-4:] == [29, 49, 57, 33]
    legacy = np.arange(100)
    np.random.seed(1993)
    np.random.shuffle(legacy)
    assert order == legacy.tolist()


def test_equal_tasks_are_the_same_order_from_the_first_on(make):
    dataset = make("class-incremental straight", classes())
    halved, equal = class_incremental(dataset, 5), class_incremental(dataset, 10, equal=True)
    assert [len(step) for step in equal.steps] == [10] * 10
    assert sum(equal.steps, ()) == sum(halved.steps, ()) and equal.classified == halved.classified
    assert equal.drawn["equal"] and "equal" not in halved.drawn


def test_test_images_of_classes_are_told_apart_by_step(make, tmp_path):
    dataset = make("class-incremental straight", classes())
    write_benchmark(class_incremental(dataset, 5), tmp_path / "b")
    benchmark = build_benchmark(dataset, BenchmarkSettings(file=tmp_path / "b", steps=6))
    for own, tested in zip(benchmark.steps, benchmark.classified, strict=True):
        assert set(dataset.identity[own]) == set(dataset.identity[tested])
        assert (dataset.role[tested] == ROLES.index("query")).all()
    assert sum(map(len, benchmark.classified)) == 100
    with pytest.raises(InputError, match="no test images"):
        class_incremental(make("crl-face straight", faces()), 5)


@pytest.fixture
def drawn(make, tmp_path) -> tuple[ShardDataset, Path]:
    dataset = make("crl-person straight", persons())
    write_benchmark(crl_person(dataset, 5, 0), tmp_path / "b.json")
    return dataset, tmp_path / "b.json"


def test_a_benchmark_file_survives_another_import_of_the_same_source(make, drawn):
    dataset, path = drawn
    turned = make("crl-person turned", persons()[::-1])
    settings = BenchmarkSettings(file=path)
    one, other = build_benchmark(dataset, settings), build_benchmark(turned, settings)
    for field in dataclasses.fields(one):
        if field.name not in (
            "pairs",
            "same",
            "folds",
            "row_of_identity",
            "row_ends",
            "names",
            "by_image",
        ):
            for a, b in zip(
                *(
                    np.atleast_2d(v) if isinstance(v, np.ndarray) else v
                    for v in (getattr(one, field.name), getattr(other, field.name))
                ),
                strict=True,
            ):
                assert sorted(dataset.keys(a)) == sorted(turned.keys(b)), field.name
    rows = [
        {name: int(row) for name, row in zip(d.names, b.row_of_identity, strict=True)}
        for d, b in ((dataset, one), (turned, other))
    ]
    assert rows[0] == rows[1]
    assert one.names.tolist() == other.names.tolist()
    assert all(rows[0][name] == row for row, name in enumerate(one.names))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": (("m/0", "nobody", "m/1"),)}, r"lacks 1 of the 3 identities .* 'nobody'"),
        ({"query": ("gone", "query/m/100_0_0")}, r"lacks 1 of the \d+ images .* 'gone'"),
        ({"steps": (("m/0",), ("m/1", "m/0"))}, "identity 'm/0' more than once"),
        ({"seen": ("query/m/100_0_0", "query/m/100_0_0")}, "image 'query/m/100_0_0' more than"),
        ({"steps": (("m/0",), ())}, "no learning step, or one without"),
        ({"steps": (("m/0",), ("m/100",))}, "trains on identity 'm/100' and tests on it"),
    ],
)
def test_a_file_that_does_not_fit_is_explained(make, tmp_path, change, words):
    dataset = make("crl-person straight", persons())
    file = crl_person(dataset, 5, 0).model_copy(update=change)
    write_benchmark(file, tmp_path / "b")
    with pytest.raises(InputError, match=words):
        place(read_benchmark(tmp_path / "b"), tmp_path / "b", dataset)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_a_damaged_file_is_an_input_error_or_another_whole_benchmark(make, drawn, seed):
    dataset, path = drawn
    random_ = random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(random_.randrange(1, 4)):
        content[random_.randrange(len(content))] ^= 1 << random_.randrange(8)
    damaged = path.with_name("damaged.json")
    damaged.write_bytes(content[: random_.choice([len(content), random_.randrange(len(content))])])
    with suppress(InputError):
        place(read_benchmark(damaged), damaged, dataset)


def test_a_missing_file_and_other_steps_are_explained(drawn):
    dataset, path = drawn
    with pytest.raises(InputError, match="does not exist: make it with"):
        build_benchmark(dataset, BenchmarkSettings(file=path.with_name("none")))
    with pytest.raises(InputError, match=r"benchmark\.steps is 4, but .* has 5"):
        build_benchmark(dataset, BenchmarkSettings(file=path, steps=4))
    path.write_text("{}")
    with pytest.raises(InputError, match="no benchmark file"):
        build_benchmark(dataset, BenchmarkSettings(file=path))


def test_settings_that_a_file_overrules_are_refused(drawn):
    _, path = drawn
    for key, value in {"test_identities": 3, "seed": 1, "pairs": 2}.items():
        with pytest.raises(ValueError, match=f"{key} is decided by benchmark.file"):
            BenchmarkSettings(file=path, **{key: value})
    with pytest.raises(ValueError, match=r"sha256 is of benchmark\.file"):
        BenchmarkSettings(sha256="00")


def test_a_file_decides_a_run_by_its_content_wherever_it_lies(drawn, tmp_path):
    _, path = drawn
    config = tmp_path / "c.yaml"
    config.write_text("dataset: d\nmethods: {finetune: }\n")
    moved = tmp_path / "moved.json"
    moved.write_bytes(path.read_bytes())

    def deciding(*overrides):
        loaded = load_config(config, overrides)
        return loaded.model_copy(update={"benchmark": loaded.benchmark.pinned()}).deciding()

    here, there = deciding(f"benchmark.file={path}"), deciding(f"benchmark.file={moved}")
    assert differences(here, there) == []
    moved.write_bytes(path.read_bytes().replace(b"m/1", b"m/2", 1))
    changed = deciding(f"benchmark.file={moved}")
    assert [line.split()[0] for line in differences(here, changed)] == ["benchmark.sha256"]
    assert differences(here, deciding()) != []


def test_a_file_that_was_changed_under_a_pinned_run_is_refused(drawn):
    dataset, path = drawn
    pinned = BenchmarkSettings(file=path).pinned()
    assert build_benchmark(dataset, pinned).row_ends == (5, 10, 15, 19, 23)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InputError, match="restore the file"):
        build_benchmark(dataset, pinned)


def test_the_plan_reads_steps_from_the_file(drawn):
    dataset, path = drawn
    rows, images = counted_split(230, 2300, BenchmarkSettings(file=path))
    assert rows == build_benchmark(dataset, BenchmarkSettings(file=path)).row_ends
    assert images == (50, 50, 50, 40, 40)


def test_random_splits_leave_test_images_alone(make):
    dataset = make("crl-person straight", persons())
    chosen = BenchmarkSettings(steps=1, test_identities=20, pairs=20, query_cameras=1)
    benchmark = build_benchmark(dataset, chosen)
    used = [*benchmark.steps, benchmark.query, benchmark.gallery]
    assert (dataset.role[np.concatenate(used)] == ROLES.index("train")).all()
    assert benchmark.row_ends == (3,)
