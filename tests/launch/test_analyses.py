"""`perennial analyse` on a whole class-incremental run, and where there is nothing to look at."""

import json
import re
import shutil
import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from data_shards.sources import SourceImage
from data_shards.splits.benchmark import build_benchmark
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from launch.analyses import features as features_module
from launch.analyses import similarity as module
from launch.analyses.opened import drawn, images_of
from launch.analyses.plane import TSNE
from launch.cli import app
from launch.config.load import load_config
from launch.terminal.console import console
from monitoring.report import draw
from tests.alone import execute_alone
from tests.conftest import jpeg
from tests.launch.classes import CLASSES, TESTED, TRAINED, write_classes, write_config
from tests.trainer.test_similarity import by_hand
from trainer.arrays import read_embeddings, write_embeddings
from trainer.model import Model
from untrusted.errors import InputError

METHODS = {
    "finetune": {"over": "all"},
    "replay": {"kind": "finetune", "over": "all", "memory": {"per_class": 2}},
    "gfr": {},
}
CONFIG = "-".join(METHODS) + ".yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run of three steps, and where its dataset lies."""
    root = write_classes(tmp_path_factory.mktemp("analyses"))
    execute_alone(load_config(write_config(root, METHODS)), root / "run")
    return root


@pytest.fixture
def run(root, tmp_path):
    """A copy of that run, without any analysis."""
    return shutil.copytree(root / "run", tmp_path / "run", symlinks=True)


def analyse(*words):
    """What a command of the group prints. Raises what it raises."""
    command = ["analyse", *map(str, words)]
    with mock.patch.object(console, "_width", 200):  # pytest-xdist says that there are 80
        done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def written(run):
    return (run / "analyses/similarity.json").read_text()


def step_folder(run, method, step):
    return run / f"chains/{method}/seed-0/steps/{step}"


def test_similarity_is_that_of_the_embeddings_of_the_images_of_each_steps_classes(run, root):
    printed = analyse("similarity", run)
    config = load_config(root / CONFIG)
    benchmark = build_benchmark(ShardDataset.open(root / "d"), config.benchmark)
    cells = cells_in(written(run), "replay")
    assert list(cells) == [(0, 1), (0, 2), (1, 2)]
    for (task, step), cell in cells.items():
        vectors = []
        for number in (task, step):
            folder = step_folder(run, "replay", number)
            of = Model.open(folder / "model").fingerprint
            samples, every = read_embeddings(folder / "embeddings.safetensors", of)
            vectors.append(every[np.isin(samples, benchmark.classified[task])].astype(float))
        mean, kept = by_hand(*vectors, 0.99)
        layers = cell["layers"]
        assert layers["embedding"]["mean"] == pytest.approx(mean, abs=1e-4)
        assert layers["embedding"]["directions"] == list(kept)
        assert cell["images"] == len(vectors[0])
        assert list(layers) == [*(f"block {n}" for n in range(1, 5)), "embedding", "logits"]
        shown = (
            f"{100 * layers['embedding']['mean']:.1f} ({100 * layers['embedding']['floor']:.0f})"
        )
        assert shown in printed or step < 2 or task


def test_a_blocks_samples_are_all_places_of_all_images(run, root):
    analyse("similarity", run)
    config = load_config(root / CONFIG)
    dataset = ShardDataset.open(root / "d")
    tested = build_benchmark(dataset, config.benchmark).classified[0]
    (images,) = images_of(dataset, tested, config.data)
    made = []
    for step in (0, 2):
        embedder = Model.open(step_folder(run, "finetune", step) / "model").embedder()
        pixels = (images.double() - 127.5) / 127.5
        with torch.inference_mode():  # the first convolution keeps the images' size: a block
            made.append(embedder.double().trunk[0](pixels).permute(0, 2, 3, 1).flatten(0, 2))
    mean, kept = by_hand(*(one.numpy() for one in made), 0.99)
    layer = cells_in(written(run))[0, 2]["layers"]["block 1"]
    assert layer["mean"] == pytest.approx(mean, abs=1e-4) and layer["directions"] == list(kept)


def cells_in(text, method="finetune"):
    (chain,) = (one for one in json.loads(text)["chains"] if one["method"] == method)
    return {(one["task"], one["step"]): one for one in chain["cells"]}


def watch(monkeypatch, failing=None):
    """The methods whose models are compared from now on; of those that are `failing`, none is."""
    compared, real = [], module._compared

    def watched(work, *others):
        compared.append(work.chain.method)
        if work.chain.method == failing:
            raise RuntimeError("killed")
        return real(work, *others)

    monkeypatch.setattr(module, "_compared", watched)
    return compared


def test_only_chains_that_changed_are_compared_again(run, monkeypatch):
    analyse("similarity", run)
    first, compared = written(run), watch(monkeypatch)
    analyse("similarity", run)
    assert not compared and written(run) == first
    last = step_folder(run, "replay", 2) / "model"
    shutil.rmtree(last)
    shutil.copytree(step_folder(run, "finetune", 2) / "model", last)
    analyse("similarity", run)
    assert set(compared) == {"replay"}
    before, now = cells_in(first, "replay"), cells_in(written(run), "replay")
    assert now[0, 1] == before[0, 1] and now[0, 2] != before[0, 2]
    assert cells_in(written(run)) == cells_in(first)


def test_a_kill_loses_no_chain_that_was_done(run, monkeypatch):
    with monkeypatch.context() as patched:
        watch(patched, failing="replay")
        with pytest.raises(RuntimeError, match="killed"):
            analyse("similarity", run)
    begun, compared = written(run), watch(monkeypatch)
    assert list(cells_in(begun)) == [(0, 1), (0, 2), (1, 2)] and "replay" not in begun
    analyse("similarity", run)
    assert set(compared) == {"replay", "gfr"}
    assert cells_in(written(run)) == cells_in(begun)
    assert cells_in(written(run), "replay").keys() == cells_in(begun).keys()


def test_json_and_the_report_show_the_same(run):
    found = json.loads(analyse("similarity", run, "--json"))
    assert [one["method"] for one in found] == list(METHODS)
    page = draw(run).read_text()
    assert page.count('<svg class="layers"') == len(METHODS)
    cell = found[1]["cells"][2]["layers"]["block 2"]
    told = f"block 2, classes of step 1 after step 2: {100 * cell['mean']:.1f} %"
    assert told in page


def test_images_are_drawn_by_seed_and_purpose_alone():
    samples = np.arange(100, 1100)
    assert np.array_equal(drawn(samples, 1000, 0, "a"), samples)
    own = drawn(samples, 50, 0, "a")
    assert np.array_equal(own, np.unique(own)) and len(own) == 50
    assert np.isin(own, samples).all() and np.array_equal(own, drawn(samples, 50, 0, "a"))
    assert not np.array_equal(own, drawn(samples, 50, 1, "a"))
    assert not np.array_equal(own, drawn(samples, 50, 0, "b"))


def test_what_cannot_be_looked_at_is_said_in_one_line(run, tmp_path):
    with pytest.raises(InputError, match="is no run folder"):
        analyse("similarity", tmp_path)
    for method in METHODS:
        for step in (1, 2):
            shutil.rmtree(step_folder(run, method, step))
    with pytest.raises(InputError, match=r"one learning step alone.*go on with"):
        analyse("similarity", run)
    shutil.rmtree(run / "chains")
    with pytest.raises(InputError, match="has no finished model yet: go on with"):
        analyse("similarity", run)
    assert not (run / "analyses").exists()


def laid_out(run, *words, method="replay", step=2):
    analyse("features", run, "--method", method, *words)
    file = run / f"analyses/features/{method}/seed-0/step-{step}.json"
    return json.loads(file.read_text())


def test_features_are_of_test_images_and_exemplars_of_learned_classes(run, root):
    found = laid_out(run)
    assert found["model"] == Model.open(step_folder(run, "replay", 2) / "model").fingerprint
    counts = {(g["origin"], g["label"]): len(g["points"]) for g in found["groups"]}
    for origin, each in (("test", TESTED), ("exemplar", 2)):
        labels = [label for of, label in counts if of == origin]
        assert len(labels) == len(set(labels)) == 10
        assert all(counts[origin, label] == each for label in labels)
    config = load_config(root / CONFIG)
    names = build_benchmark(ShardDataset.open(root / "d"), config.benchmark).names.tolist()
    first = laid_out(run, "--step", 0, method="finetune", step=0)
    assert [g["label"] for g in first["groups"]] == names[:6], "ten are not learned yet"
    assert {g["origin"] for g in first["groups"]} == {"test"}, "finetune keeps none"


def embedded(run, monkeypatch, *words):
    """By origin and class the features that are laid out, before that."""
    kept = []
    plane = TSNE.__call__

    def watched(self, vectors, seed):
        kept.append(vectors)
        return plane(self, vectors, seed)

    monkeypatch.setattr(TSNE, "__call__", watched)
    found, first = {}, 0
    for group in laid_out(run, *words)["groups"]:
        own = kept[-1][first : (first := first + len(group["points"]))]
        found[group["origin"], group["label"]] = own
    return found


def test_exemplars_are_at_their_own_embeddings_among_training_images(run, root, monkeypatch):
    """Theirs are other pixels than the images' that they began as, where they are learned."""
    memory = step_folder(run, "replay", 2) / "exemplars"
    before = embedded(run, monkeypatch, "--training", "--class", "class-03", "--class", "class-07")
    assert {origin for origin, _ in before} == {"training", "exemplar"}
    counts = {key: len(own) for key, own in before.items()}
    assert counts["training", "class-03"] == TRAINED and counts["exemplar", "class-03"] == 2
    assert all(
        any(np.array_equal(one, of) for of in before["training", "class-03"])
        for one in before["exemplar", "class-03"]
    )

    kept, images = ShardDataset.open(memory), []
    for sample in range(len(kept)):
        name = str(kept.names[kept.identity[sample]])
        (key,), image = kept.keys(np.array([sample])), bytes(kept.image(sample))
        changed = name == "class-03"
        images.append(SourceImage(jpeg(40, sample) if changed else image, name, "", key))
    shutil.rmtree(memory)
    write_dataset(images, memory, {})
    after = embedded(run, monkeypatch, "--training", "--class", "class-03", "--class", "class-07")
    assert {label for origin, label in after if origin == "start"} == {"class-03"}
    assert np.array_equal(after["start", "class-03"], before["exemplar", "class-03"])
    model = Model.open(step_folder(run, "replay", 2) / "model").embedder()
    learned = ShardDataset.open(memory)
    own = np.flatnonzero(learned.names[learned.identity] == "class-03")
    (pixels,) = images_of(learned, own, load_config(root / CONFIG).data)
    with torch.inference_mode():
        expected = model(pixels).numpy()
    np.testing.assert_allclose(after["exemplar", "class-03"], expected, atol=1e-5)
    assert 'class="way"' in draw(run).read_text()


def test_features_are_of_what_the_methods_generator_draws_too(run, monkeypatch):
    monkeypatch.setattr(features_module, "_EACH", 5)
    groups = laid_out(run, method="gfr")["groups"]
    counts = {(g["origin"], g["label"]): len(g["points"]) for g in groups}
    assert {origin for origin, _ in counts} == {"test", "generated"}
    drawn_of = {label: count for (origin, label), count in counts.items() if origin == "generated"}
    assert set(drawn_of) == {label for origin, label in counts if origin == "test"}
    assert set(drawn_of.values()) == {5}
    first = laid_out(run, "--step", 0, method="gfr", step=0)["groups"]
    assert {g["origin"] for g in first} == {"test", "generated"}, "of the step's own classes, too"


def test_features_are_the_same_for_the_same_seed(run):
    chosen = ("--class", "class-03", "--class", "class-07")
    first = laid_out(run, *chosen)
    assert {g["label"] for g in first["groups"]} == {"class-03", "class-07"}
    assert laid_out(run, *chosen) == first
    assert '<svg class="plane"' in draw(run).read_text()


def test_neighbours_in_the_plane_are_those_of_the_embeddings():
    draws = np.random.default_rng(0)
    rows = np.repeat(np.arange(6), 15)
    vectors = (20 * draws.normal(size=(6, 12)))[rows] + draws.normal(size=(90, 12))
    plane = TSNE()
    points = plane(vectors.astype(np.float32), 0)
    apart = ((points[:, None] - points[None]) ** 2).sum(axis=2) + 1e9 * np.eye(90)
    assert (rows[apart.argmin(axis=1)] == rows).mean() > 0.97
    assert np.array_equal(points, plane(vectors.astype(np.float32), 0))


def over_steps(run, method="replay"):
    file = run / f"analyses/features/{method}/seed-0/over-steps.json"
    return json.loads(file.read_text())


def of_groups(step):
    """The points of a step, [n, 2], and the number of each one's group."""
    counts = [len(group["points"]) for group in step["groups"]]
    points = np.concatenate([group["points"] for group in step["groups"]])
    return points, np.repeat(np.arange(len(counts)), counts)


def test_the_same_tested_identities_are_laid_out_after_every_step_of_every_method(run, root):
    analyse("features", run, "--over-steps")
    dataset = ShardDataset.open(root / "d")
    labels = [group["label"] for group in over_steps(run)["steps"][0]["groups"]]
    assert len(set(labels)) == 10 and set(labels) < set(dataset.names.tolist())
    for method in METHODS:
        found = over_steps(run, method)
        assert [own["step"] for own in found["steps"]] == [0, 1, 2]
        for own in found["steps"]:
            assert [group["label"] for group in own["groups"]] == labels
            assert {len(group["points"]) for group in own["groups"]} == {TESTED}
            model = Model.open(step_folder(run, method, own["step"]) / "model")
            assert own["model"] == model.fingerprint
    first = over_steps(run)
    analyse("features", run, "--over-steps", "--method", "replay")
    assert over_steps(run) == first
    page = draw(run).read_text()
    assert page.count('<div class="beside">') == len(METHODS)


def test_points_over_steps_are_those_of_the_embeddings_kept_beside_the_evaluations(run, root):
    """Of one identity are together, at steps whose embeddings put others beside each other."""
    dataset, draws = ShardDataset.open(root / "d"), np.random.default_rng(0)
    for step in range(3):
        folder = step_folder(run, "replay", step)
        of = Model.open(folder / "model").fingerprint
        samples, vectors = read_embeddings(folder / "embeddings.safetensors", of)
        centres = draws.normal(size=(len(dataset.names), vectors.shape[1]))
        near = centres[dataset.identity[samples]] + 0.01 * draws.normal(size=vectors.shape)
        scaled = near * draws.uniform(0.1, 10, size=(len(near), 1))  # the distance is cosine
        path = folder / "embeddings.safetensors"
        write_embeddings(path, samples, scaled.astype(np.float32), of)
    analyse("features", run, "--over-steps", "--method", "replay")
    for own in over_steps(run)["steps"]:
        points, group = of_groups(own)
        apart = ((points[:, None] - points[None]) ** 2).sum(axis=2) + 1e9 * np.eye(len(points))
        assert (group[apart.argmin(axis=1)] == group).all()


def test_clusters_that_stay_apart_stay_where_they_were():
    draws = np.random.default_rng(0)
    rows = np.repeat(np.arange(6), 15)
    before = (20 * draws.normal(size=(6, 12)))[rows] + draws.normal(size=(90, 12))
    after = before + draws.normal(size=(90, 12))
    plane = TSNE()
    first = plane(before.astype(np.float32), 0, perplexity=15.0)
    second = plane(after.astype(np.float32), 0, perplexity=15.0, begin=first)
    centres = [
        np.stack([at[rows == row].mean(axis=0) for row in range(6)]) for at in (first, second)
    ]
    apart = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2)
    assert np.array_equal(apart.argmin(axis=1), np.arange(6)), "each is nearest to itself"


class Doubling:
    """A `FeatureSource` of rows 0 to 4 whose features tell their class and noise."""

    rows, noise = 5, 3

    def features(self, classes, noise):
        return torch.cat([classes[:, None].float(), 2 * noise], dim=1)


def test_generated_features_are_of_the_classes_that_the_generator_knows():
    found = features_module.generated(Doubling(), np.array([1, 3, 7]), 40, seed=4)
    assert found.rows.tolist() == [1] * 40 + [3] * 40 and found.vectors.shape == (80, 4)
    assert np.array_equal(found.vectors[:, 0], found.rows)
    noise = found.vectors[:, 1:] / 2
    assert len(np.unique(noise)) == noise.size and abs(noise.mean()) < 0.3
    again = features_module.generated(Doubling(), np.array([1, 3, 7]), 40, seed=4)
    assert np.array_equal(again.vectors, found.vectors)
    other = features_module.generated(Doubling(), np.array([1, 3, 7]), 40, seed=5)
    assert not np.array_equal(other.vectors, found.vectors)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--method", "fkd"),
            "no finished model of a method 'fkd', only of: finetune, replay, gfr",
        ),
        (("--method", "replay", "--step", "3"), "no finished model of step 3, only of: 0, 1, 2"),
        (("--method", "replay", "--seed", "5"), "no finished model of seed 5, only of: 0"),
        (
            ("--method", "replay", "--step", "0", "--class", "class-99"),
            "'class-99' is none of the 6",
        ),
        (("--method", "replay", *["--class", "class-03"] * 21), "21 classes have more colours"),
        (("--method", "finetune", "--class", "class-03"), "3 features are too few"),
        ((), "say whose model it is, --method, or --over-steps"),
        (("--over-steps", "--step", "1"), "leave out --step and --training"),
        (("--over-steps", "--class", "class-99"), "none of the 12 identities that are tested"),
        (("--over-steps", *["--class", "class-03"] * 21), "21 identities have more colours"),
    ],
)
def test_bad_choices_are_named_with_what_there_is(run, words, said):
    with pytest.raises(InputError, match=re.escape(said)):
        analyse("features", run, *words)
    assert not (run / "analyses").exists()


def test_t_sne_without_scikit_learn_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(InputError, match=re.escape("pip install 'perennial-id[analysis]'")):
        analyse("features", run, "--method", "replay")


def test_memory_is_what_each_method_keeps_after_its_newest_step(run):
    last = step_folder(run, "replay", 2)
    (last / "importance").mkdir()
    (last / "importance/importances.safetensors").write_bytes(b"0" * 1234)
    rows = {row.pop("method"): row for row in json.loads(analyse("memory", run, "--json"))}
    images = json.loads((last / "exemplars.json").read_text())
    tensors = Model.open(last / "model").embedder().state_dict().values()
    network = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    model = {"step": 2, "network_bytes": network, "rows_bytes": 4 * 8 * CLASSES}
    assert rows["finetune"] == model
    assert rows["replay"] == model | {
        "exemplar_images": 2 * CLASSES,
        "exemplar_bytes": images["bytes"],
        "exemplar_pixel_bytes": 2 * CLASSES * 3 * 16 * 16,
        "importance_bytes": 1234,
    }
    card = json.loads((step_folder(run, "gfr", 2) / "generator/card.json").read_text())
    assert rows["gfr"] == model | {"generator_bytes": card["bytes"]}
    printed = analyse("memory", run)
    assert "exemplars as pixels" in printed and "importances" in printed and "24" in printed


def test_memory_needs_no_test_of_classes(run):
    for file in run.glob("chains/*/*/steps/*/evaluation.json"):
        file.unlink()
    shutil.rmtree(step_folder(run, "finetune", 2) / "model")
    rows = {row["method"]: row for row in json.loads(analyse("memory", run, "--json"))}
    steps = {method: row["step"] for method, row in rows.items()}
    assert steps == {"finetune": 1, "replay": 2, "gfr": 2}
    assert rows["replay"]["exemplar_images"] == 24 and rows["finetune"]["rows_bytes"] == 4 * 8 * 9


def test_images_are_queries_where_no_learned_class_is_tested():
    def run(**parts):
        settings = SimpleNamespace(benchmark=SimpleNamespace(seed=0))
        return SimpleNamespace(folder="r", benchmark=SimpleNamespace(**parts), config=settings)

    several, many = (np.array([5, 9]), np.array([7])), np.arange(5000)
    tested = run(classified=several, query=many)
    assert module._test_images(tested, 1).tolist() == [7]
    queries = [module._test_images(run(classified=(), query=many), step) for step in (0, 0, 1)]
    assert [len(own) for own in queries] == [2000] * 3
    assert np.array_equal(queries[0], queries[1]) and not np.array_equal(queries[0], queries[2])
    with pytest.raises(InputError, match="tests no image of the classes of learning step 0"):
        module._test_images(run(classified=(), query=np.empty(0, dtype=int)), 0)
