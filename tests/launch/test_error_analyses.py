"""`perennial analyse confusion` and `attention` on a run of methods with rules of their own."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from data_shards.splits.benchmark import build_benchmark
from data_shards.storage.dataset import ShardDataset
from launch.analyses.meta_classes import CIFAR_100, of_cifar, of_file
from launch.config.load import load_config
from launch.runs.run import Run
from monitoring.report import draw
from tests.alone import execute_alone
from tests.launch.classes import CLASSES, TESTED, write_classes, write_config
from tests.launch.test_analyses import analyse, step_folder
from untrusted.errors import InputError

METHODS = {"icarl": {"memory": {"per_class": 1}}, "lucir": {"memory": {"per_class": 1}}, "ewc": {}}
CONFIG = "-".join(METHODS) + ".yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of three steps that learns little, so that there are errors of every kind."""
    root = write_classes(tmp_path_factory.mktemp("errors"))
    training = {"iterations": 4, "batch": 24, "milestones": []}
    execute_alone(load_config(write_config(root, METHODS, training=training)), root / "run")
    return root


@pytest.fixture
def run(root, tmp_path):
    """A copy of that run, without any analysis."""
    return shutil.copytree(root / "run", tmp_path / "run", symlinks=True)


@pytest.fixture
def benchmark(root):
    """The run's."""
    return build_benchmark(ShardDataset.open(root / "d"), load_config(root / CONFIG).benchmark)


def counted(run, *words):
    """The errors by method and step, and all that was told."""
    found = json.loads(analyse("confusion", run, "--json", *words))
    chains = {one["method"]: {own["step"]: own for own in one["steps"]} for one in found["chains"]}
    assert list(chains) == list(METHODS)
    return chains, found


def by_steps(benchmark, folder):
    """A file that makes each learning step's classes a meta-class."""
    ends = np.array(benchmark.row_ends)
    lines = [
        f"{name},step {np.searchsorted(ends, row, side='right')}"
        for row, name in enumerate(benchmark.names)
    ]
    file = folder / "meta.csv"
    file.write_text("\n".join([*lines, "", "class-99,of no step"]) + "\n")
    return file


def test_with_steps_as_meta_classes_errors_are_those_of_the_evaluation(run, benchmark, tmp_path):
    """Each rule decides as it did: nearest means, largest logits and largest of heads."""
    chains, told = counted(run, "--meta", by_steps(benchmark, tmp_path))
    assert told["meta"]["source"] == "meta.csv"
    assert [len(group["classes"]) for group in told["meta"]["groups"]] == [6, 3, 3]
    forgotten = 0
    for method, steps in chains.items():
        for step, found in steps.items():
            file = step_folder(run, method, step) / "evaluation.json"
            evaluation = json.loads(file.read_text())
            classes = np.diff(benchmark.row_ends[: step + 1], prepend=0)
            taken = np.array(evaluation["confusion"]) * TESTED * classes[:, None]
            apart = taken.sum(axis=1) - np.diag(taken)
            wrong = (1 - evaluation["class_accuracy"]) * found["images"]
            assert found["images"] == TESTED * benchmark.row_ends[step]
            assert found["wrong"] == pytest.approx(wrong)
            assert found["forgetting"] == pytest.approx(apart[:-1].sum())
            assert found["other"] == pytest.approx(apart[-1])
            parts = (found[part] for part in ("confusion", "forgetting", "other"))
            assert sum(parts) == found["wrong"]
            forgotten += found["forgetting"]
    assert forgotten > 10, "else nothing was tested"


def test_clusters_are_the_same_for_all_and_their_number_is_told(run, benchmark):
    chains, told = counted(run)
    assert told["meta"]["source"] == "clusters by icarl/seed-0, step 2"
    groups = [group["classes"] for group in told["meta"]["groups"]]
    assert len(groups) == round(CLASSES / 5)
    assert sorted(name for own in groups for name in own) == sorted(benchmark.names)
    one, _ = counted(run, "--clusters", 1)
    each, _ = counted(run, "--clusters", CLASSES)
    for method, steps in chains.items():
        for step, found in steps.items():
            assert one[method][step]["confusion"] == found["wrong"]
            assert each[method][step]["confusion"] == 0
            assert each[method][step]["wrong"] == found["wrong"]
    again, _ = counted(run)
    assert again == chains


def test_without_kept_embeddings_images_are_embedded_anew(run):
    before, _ = counted(run)
    for file in run.glob("chains/*/*/steps/*/embeddings.safetensors"):
        file.unlink()
    assert counted(run)[0] == before


def test_two_methods_are_compared_and_the_report_draws_all(run):
    chains, told = counted(run, "--against", "lucir")
    pairs = {(one["method"], one["against"]) for one in told["differences"]}
    assert pairs == {("icarl", "lucir"), ("ewc", "lucir")}
    for one in told["differences"]:
        own, other = (chains[m][one["step"]][one["part"]] for m in (one["method"], "lucir"))
        assert one["mean"] == own - other and one["seeds"] == 1
    printed = analyse("confusion", run, "--against", "lucir", "--method", "ewc")
    assert "errors of ewc - lucir" in printed and "icarl - lucir" not in printed
    assert "2 meta-classes: clusters by" in printed
    page = draw(run).read_text()
    assert "<h2>Confusion and forgetting</h2>" in page and "2 meta-classes</summary>" in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--clusters", "0"), "--clusters 0: give 1 to 12"),
        (("--clusters", "13"), "--clusters 13: give 1 to 12"),
        (("--clusters", "2", "--meta", "x.csv"), "leave out --clusters"),
        (("--against", "bic"), "has no errors of 'bic', only of: icarl, lucir, ewc"),
        (("--method", "ewc"), "--method needs --against"),
        (("--meta", "/nowhere.csv"), "--meta /nowhere.csv cannot be read"),
    ],
)
def test_bad_choices_are_named_with_what_there_is(run, words, said):
    with pytest.raises(InputError, match=re.escape(said)):
        analyse("confusion", run, *words)


def test_steps_that_are_not_evaluated_yet_are_left_out(run):
    (step_folder(run, "ewc", 2) / "evaluation.json").unlink()
    chains, _ = counted(run)
    assert list(chains["ewc"]) == [0, 1] and list(chains["icarl"]) == [0, 1, 2]
    for file in run.glob("chains/*/*/steps/*/evaluation.json"):
        file.unlink()
    with pytest.raises(InputError, match="no evaluated step yet: go on with"):
        analyse("confusion", run)


def looked(run, method, *words):
    """The maps of a method by image and step, and the images."""
    analyse("attention", run, "--method", method, *words)
    found = json.loads((run / f"analyses/attention/{method}/seed-0.json").read_text())
    maps = {(one["image"], own["step"]): own for one in found["images"] for own in one["maps"]}
    return maps, {one["image"]: one for one in found["images"]}


@pytest.mark.parametrize("method", METHODS)
def test_every_test_image_is_taken_for_what_the_evaluation_took_it_for(run, benchmark, method):
    dataset = ShardDataset.open(load_config(run / "run.yaml").dataset)
    tested = np.concatenate(benchmark.classified)
    keys = dataset.keys(tested)
    rows = dict(zip(keys, benchmark.row_of_identity[dataset.identity[tested]], strict=True))
    words = [word for key in keys for word in ("--image", key)]
    maps, told = looked(run, method, *words)
    assert set(told) == set(keys)
    for step, end in enumerate(benchmark.row_ends):
        known = {key for key in keys if rows[key] < end}
        assert {key for key, of in maps if of == step} == known, "later classes have no map yet"
        file = step_folder(run, method, step) / "evaluation.json"
        accuracy = json.loads(file.read_text())["class_accuracy"]
        assert np.mean([maps[key, step]["right"] for key in known]) == pytest.approx(accuracy)
        for key in known:
            assert maps[key, step]["right"] == (maps[key, step]["said"] == told[key]["label"])
    predicted, _ = looked(run, method, "--of", "predicted", *words)
    apart = [key for key, own in maps.items() if own["jpeg"] != predicted[key]["jpeg"]]
    assert apart and not any(maps[key]["right"] for key in apart), "of right ones they are the same"


def test_images_are_one_of_each_class_and_the_report_draws_them(run):
    maps, told = looked(run, "lucir", "--class", "class-03", "--class", "class-07")
    assert {one["label"] for one in told.values()} == {"class-03", "class-07"}
    assert looked(run, "lucir", "--class", "class-03", "--class", "class-07") == (maps, told)
    _, usual = looked(run, "lucir")
    assert len(usual) == 6, "of eight asked for, step 0 has six classes"
    page = draw(run).read_text()
    assert "<h2>Attention</h2>" in page and "lucir, seed 0, true class" in page
    shown = page.partition("<h2>Attention</h2>")[2].partition("<h2>")[0]
    assert shown.count("<img") == 6 * (1 + 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--method", "bic"), "no finished model of a method 'bic', only of: icarl, lucir, ewc"),
        (("--method", "ewc", "--seed", "3"), "no finished model of seed 3, only of: 0"),
        (("--method", "ewc", "--image", "x"), "'x' is none of the 36 test images"),
        (("--method", "ewc", "--class", "x"), "'x' is none of the 12 classes"),
    ],
)
def test_images_that_are_not_there_are_named(run, words, said):
    with pytest.raises(InputError, match=re.escape(said)):
        analyse("attention", run, *words)
    assert not (run / "analyses").exists()


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("class", "1 of 12 classes have no test image to be clustered by"),
        ("step", "does not test images of the classes of every step: set benchmark.classified"),
    ],
)
def test_classes_without_a_test_image_are_named(run, monkeypatch, lost, said):
    build = Run.open.__func__

    def lacking(cls, folder, config, *others):
        opened = build(cls, folder, config, *others)
        first, *later = opened.benchmark.classified
        rows = opened.benchmark.row_of_identity[opened.dataset.identity[first]]
        tested = (first[rows > 0], *later) if lost == "class" else (first[:0], *later)
        return replace(opened, benchmark=replace(opened.benchmark, classified=tested))

    monkeypatch.setattr(Run, "open", classmethod(lacking))
    with pytest.raises(InputError, match=said):
        analyse("confusion", run)


def test_cifar_100_has_twenty_meta_classes_of_five():
    names = [name for own in CIFAR_100.values() for name in own.split()]
    assert len(CIFAR_100) == 20 and len(set(names)) == len(names) == 100
    found = of_cifar(["cifar100/baby", "cifar100/apple", "cifar100/woman", "cifar100/pear"])
    assert found.of.tolist() == [0, 1, 0, 1]
    assert found.groups == ("people", "fruit and vegetables")
    assert of_cifar(["apple", "airplane"]) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,x\nb\n", "line 2 has 1 cells: write class,meta-class"),
        ("a,x\nb, \n", "line 2 has 2 cells: write class,meta-class"),
        ("a,x\nb,y\na,z\n", "line 3 puts 'a' into 'z', and a line before into 'x'"),
        ("a,x\nb," + "y" * 200_000, "is no CSV (field larger than field limit"),
        ("a,x\n", "lacks 1 of the 2 classes learned, such as 'b': add a line b,its meta-class"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, text, said):
    file = tmp_path / "m.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        of_file(file, ["a", "b"])


def test_names_with_commas_are_quoted(tmp_path):
    file = tmp_path / "m.csv"
    file.write_text('"a, b",x\nc , y\n')
    found = of_file(file, ["c", "a, b"])
    assert found.groups == ("y", "x") and found.of.tolist() == [0, 1]
