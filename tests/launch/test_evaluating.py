"""A test set for one model, and MegaFace's feature files out of a model and into a test."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.features import read_feature, write_feature
from data_shards.writing.writer import write_dataset
from launch.cli import app
from launch.inference.embed import embed
from launch.inference.test_sets import Measurement
from launch.models.compare import TwoModelTest
from launch.models.embed import Images, run_embed
from launch.models.evaluate import FeatureFiles, counted, settings_of_test
from launch.runs.test_sets import TestSet, open_test
from monitoring.pace import Telling
from tests.commands import perennial
from tests.conftest import jpeg
from tests.launch.test_galleries import adopted, here
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.evaluation.compatibility import CompatibilitySettings
from trainer.evaluation.compatibility.trials import of_dataset
from trainer.evaluation.identification import identify
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows
from trainer.model import Model, save_model

QUIET = Console(quiet=True)
ENDING = "_ours.bin"


@pytest.fixture(scope="module")
def megaface(tmp_path_factory) -> Path:
    """Datasets `facescrub` and `megaface`, as their importers name images."""
    root = tmp_path_factory.mktemp("megaface")
    probes = [(i, c, f"Al {i}", f"Al_{c}.png") for i in range(6) for c in range(3)]
    # strangers who look like those that are looked for
    others = [(i % 6, i, "7@N01", f"{i}_0.jpg") for i in range(20, 60)]
    for name, images, role in (("facescrub", probes, "query"), ("megaface", others, "distractor")):
        made = (
            SourceImage(jpeg(i, c), f"{name}/{who}", name, f"{name}/{who}/{file}", role)
            for i, c, who, file in images
        )
        write_dataset(made, root / name, {"kind": name}, 16)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return adopted(tmp_path_factory.mktemp("model") / "m", 0, 8)


def everything(model: Model, dataset: ShardDataset) -> np.ndarray:
    samples = np.arange(len(dataset))
    return embed(model.embedder(), dataset, samples, PipelineSettings(), len(dataset))


def write_features(model: Model, megaface: Path, out: Path) -> None:
    for name in ("facescrub", "megaface"):
        images = Images.open(str(megaface / name), None, model)
        run_embed(model, images, out / name, here, QUIET, ENDING)


@pytest.fixture(scope="module")
def features(model, megaface, tmp_path_factory) -> Path:
    """Trees of feature files of both."""
    out = tmp_path_factory.mktemp("features")
    write_features(model, megaface, out)
    return out


def opened(megaface: Path) -> TestSet:
    sides = {"dataset": str(megaface / "facescrub"), "distractors": str(megaface / "megaface")}
    return open_test(settings_of_test(protocol="identification", **sides), "cosine")


def read_in(features: Path, megaface: Path, scratch: Path) -> dict:
    """The figures of feature files."""

    def map_(method, calls):
        return [function(*arguments) for function, *arguments in calls]

    folders = {"dataset": features / "facescrub", "distractors": features / "megaface"}
    files = FeatureFiles(folders, ENDING, QUIET)
    return Measurement(files, scratch, map_).results(opened(megaface), scratch)


def test_feature_files_mirror_the_tree_of_images(features, model, megaface):
    dataset = ShardDataset.open(str(megaface / "facescrub"))
    files = sorted(p.relative_to(features).as_posix() for p in features.rglob("*.bin"))
    assert len(files) == 18 + 40
    assert files[0] == "facescrub/Al 0/Al_0.png_ours.bin"
    assert "megaface/7@N01/20_0.jpg_ours.bin" in files
    vectors = everything(model, dataset)
    for key, vector in zip(dataset.keys(np.arange(18)), vectors, strict=True):
        content = (features / f"{key}{ENDING}").read_bytes()
        assert struct.unpack_from("<4i", content) == (8, 1, 4, 5)
        np.testing.assert_allclose(np.frombuffer(content, "<f4", 8, 16), vector, rtol=1e-4)


def test_feature_files_of_another_model_or_ending_are_not_mixed(features, megaface, tmp_path):
    images = Images.open(str(megaface / "facescrub"), None, other := adopted(tmp_path / "o", 1, 8))
    with pytest.raises(InputError, match=r"has model .*: give another --out"):
        run_embed(other, images, features / "facescrub", here, QUIET, ENDING)
    with pytest.raises(InputError, match="holds no gallery"):
        run_embed(other, images, features / "facescrub", here, QUIET)
    with pytest.raises(InputError, match="was not written by this command"):
        run_embed(other, images, features, here, QUIET, ENDING)
    with pytest.raises(InputError, match="is the name of a file"):
        run_embed(other, images, tmp_path / "f.npy", here, QUIET, ENDING)


def test_feature_files_appear_all_at_once(features, model, megaface, tmp_path, monkeypatch):
    written = []

    def full(path, vector):
        written.append(path)
        if len(written) == 7:
            raise OSError("no space left on device")
        write_feature(path, vector)

    with monkeypatch.context() as broken:
        broken.setattr("launch.models.sinks.features.write_feature", full)
        with pytest.raises(OSError, match="no space"):
            write_features(model, megaface, tmp_path)
    assert not list(tmp_path.glob("[!.]*"))
    write_features(model, megaface, tmp_path)
    for path in features.rglob("*.bin"):
        assert (tmp_path / path.relative_to(features)).read_bytes() == path.read_bytes()


def test_images_are_made_as_large_as_those_a_model_was_trained_on(sets, tmp_path):
    settings, ranks = EmbedderSettings(width=4, dimension=8), Ranks()
    parts = MarginLoss(ClassifierSettings(), 0, torch.device("cpu")), build_embedder(settings)
    rows = [ShardedRows.new(0, 2, 8, 0, ranks)]
    for size in ((16, 16), (24, 20)):
        save_model(tmp_path / str(size), settings, size, *parts, rows, ["a", "b"], ranks)
    smaller, larger = (Model.open(tmp_path / str(size)) for size in ((16, 16), (24, 20)))
    dataset = str(sets / "market")  # of 16 × 16
    sizes = [Images.open(dataset, None, m).plan(m)["image_size"] for m in (smaller, larger)]
    assert sizes == [[16, 16], [24, 20]]
    assert Images.open(dataset, (8, 8), larger).plan(larger)["image_size"] == [8, 8]
    probes = ShardDataset.open(dataset)
    test = TwoModelTest(probes, of_dataset(probes), PipelineSettings(), CompatibilitySettings(), "")
    for model in (smaller, larger):
        assert model.image_size is not None
        data = PipelineSettings(image_size=model.image_size)
        expected = embed(model.embedder(), probes, test.trials.samples, data, 9)
        found = test.embedded(model, lambda **_: None)
        np.testing.assert_allclose(found.vectors, expected, rtol=1e-3, atol=1e-5)


def test_figures_of_feature_files_are_those_of_their_numbers(
    features, model, megaface, tmp_path, monkeypatch
):
    monkeypatch.setattr("launch.models.evaluate._BATCH", 7)
    probes, others = (ShardDataset.open(str(megaface / n)) for n in ("facescrub", "megaface"))
    vectors = [torch.from_numpy(everything(model, d)) for d in (probes, others)]
    unit = [torch.nn.functional.normalize(v) for v in vectors]
    expected = identify(unit[0], probes.identity, unit[1], 50)
    found = read_in(features, megaface, tmp_path / "scratch")
    assert found["cmc"] == expected.cmc.tolist()
    assert 0 < found["rank1"] < 1
    assert (found["trials"], found["distractors"]) == (36, 40)


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (None, r"Al_1\.png_ours\.bin cannot be read: No such file"),
        ([1.0, 2.0], r"Al_1\.png_ours\.bin has 2 numbers, others have 8"),
        ([np.nan] * 8, r"Al_1\.png_ours\.bin holds numbers that are not finite"),
    ],
)
def test_a_feature_file_that_is_missing_or_wrong_is_named(
    features, megaface, tmp_path, vector, words
):
    for path in features.rglob("*.bin"):
        write_feature(tmp_path / path.relative_to(features), read_feature(path))
    wrong = tmp_path / "facescrub" / "Al 3" / "Al_1.png_ours.bin"
    wrong.unlink()
    if vector is not None:
        write_feature(wrong, np.array(vector))
    with pytest.raises(InputError, match=words):
        read_in(tmp_path, megaface, tmp_path / "scratch")


def test_a_model_and_its_feature_files_have_the_same_figures(
    features, model, megaface, tmp_path, monkeypatch
):
    on = ["--on", megaface / "facescrub", "--distractors", megaface / "megaface"]
    on += ["--protocol", "identification"]
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "launch.cli", "evaluate", model.folder, *on]
    command += ["--actors", "1", "--out", out]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    table = ended.stdout
    found = json.loads(out.read_text())
    assert f"{found['rank1']:.2%}" in table
    assert found["cmc"] == read_in(features, megaface, tmp_path / "scratch")["cmc"]
    of_files = ["--features", ENDING, "--distractor-features", features / "megaface"]
    end = Telling.__exit__

    def telling(self, *_):  # how far it is, without waiting for half a minute
        self.print(self.line())
        end(self)

    monkeypatch.setattr(Telling, "__exit__", telling)
    words = [features / "facescrub", *on, *of_files, "--actors", "1", "--json"]
    said = CliRunner().invoke(app, ["evaluate", *map(str, words)])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout) == found
    assert "reading" in said.stderr
    assert not list(tmp_path.glob(".evaluating-*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--features", "a/b"], "--features 'a/b': give what file names end in"),
        (["--features", "_a.bin", "--mirror"], "--mirror and --size are for images"),
        (["--distractor-features", "f"], "--distractor-features needs --features"),
        (["--distractors", "d"], "distractors are for protocol identification"),
    ],
)
def test_options_that_contradict_each_other_are_named(words, said):
    done = perennial("evaluate", "x", "--on", "y", "--protocol", "retrieval", *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_embedding_is_counted_in_images_and_comparing_in_units():
    calls = [("model", np.arange(512)), ("model", np.arange(300))]
    assert counted(calls) == (812, "images")
    assert counted([(len, "a"), (len, "b"), (len, "c")]) == (3, "units")
