"""`import perennial`: the vectors, classes and figures of the commands, in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import perennial
from data_shards.sources.folder import FolderSettings, read_folder
from data_shards.writing.writer import write_dataset
from launch.config.load import load_config
from launch.models.embed import Images, run_embed
from monitoring.results import compare
from tests.alone import execute_alone
from tests.commands import perennial as command
from tests.integration.test_photographs import photograph
from tests.launch.test_galleries import adopted, here
from tests.perennial.pages import blocks, execute
from trainer.evaluation.compatibility.vectors import comparable
from trainer.model import Model

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
PEOPLE = ("ana", "bo", "cai", "dan", "eva", "fay", "gus", "hal", "ida", "jo", "kim", "leo")
SHORT = (
    *(
        "training.iterations=30",
        "training.batch=16",
        "training.log_every=10",
        "evaluation.tests={}",
    ),
    *("data.image_size=32x32", "benchmark.steps=2", "benchmark.train_identities=8"),
    *("benchmark.test_identities=4", "methods.finetune={}", "methods.fkd.neighbours=2"),
    *("cluster.workers=0", "dataset=data/november"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with photographs, their dataset, a run on it, and its vectors."""
    home = tmp_path_factory.mktemp("home")
    before = Path.cwd()
    os.chdir(home)
    for month, shots in (("november", range(4)), ("december", range(4, 5))):
        for who, name in enumerate(PEOPLE):
            (own := Path("photos") / month / name).mkdir(parents=True)
            for shot in shots:
                kind = "png" if shot == 2 else "jpg"
                photograph(who, shot).save(own / f"{shot}.{kind}", quality=95)
    found = read_folder(FolderSettings(path=Path("photos/november")))
    write_dataset(found, Path("data/november"), {}, shard_samples=20)
    execute_alone(load_config(Path("photos"), SHORT), Path("runs/november"))
    embedded("runs/november:fkd", "vectors")
    yield home
    os.chdir(before)


@pytest.fixture(scope="module")
def model(home):
    return perennial.load("runs/november:fkd")


def embedded(name, out):
    """Does as `perennial embed`, without Ray."""
    saved = perennial.load(name)._saved
    images = Images.open("data/november", None, saved)
    run_embed(saved, images, Path(out), here, Console(quiet=True))


def stored(path="flat.npy"):
    embedded("runs/november:fkd", path)
    ids = Path("flat.ids.tsv").read_text(encoding="utf-8").splitlines()[1:]
    keys = [line.split("\t")[0] for line in ids]
    return dict(zip(keys, np.load(path), strict=True))


def test_a_dataset_has_the_vectors_that_the_command_writes(model):
    assert np.array_equal(model.embed("data/november"), np.stack(list(stored().values())))


def test_files_have_the_vectors_of_what_an_import_makes_of_them(model):
    """JPEGs and PNGs of many sizes."""
    expected, files = stored(), perennial.images("photos/november")
    assert [str(file.relative_to("photos/november")) for file in files] == sorted(expected)
    for given in ("photos/november", Path("photos/november"), files, map(str, files)):
        found = model.embed(given)
        assert (found.dtype, found.shape) == (np.float32, (len(files), model.dimension))
        for file, vector in zip(files, found, strict=True):
            own = expected[str(file.relative_to("photos/november"))]
            assert np.allclose(vector, own, rtol=1e-4, atol=1e-5), file


def test_pixels_go_to_the_network_as_they_are(model):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)
    network = Model.open(model.folder).embedder()
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    images = [Image.fromarray(one) for one in pixels]
    for given in (pixels, list(pixels), images):
        assert np.allclose(model.embed(given), expected, rtol=1e-4, atol=1e-5)
    assert np.allclose(model.embed(images[3]), expected[3:4], rtol=1e-4, atol=1e-5)
    assert np.allclose(model.embed(pixels[3]), expected[3:4], rtol=1e-4, atol=1e-5)


def test_pillow_images_are_turned_and_flattened_as_files_are(model, tmp_path):
    turned = photograph(0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    seen = photograph(1, 0)
    seen.putalpha(128)
    seen.save(tmp_path / "seen.png")
    for path in tmp_path.iterdir():
        with Image.open(path) as opened:
            one, other = model.embed(opened), model.embed(path)
        cosine = (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)
        assert cosine > 0.999, path  # the file becomes a JPEG, the image does not


def test_classes_are_those_of_the_command(model):
    files = perennial.images("photos/december")
    found = model.classify(files)
    assert [one.image for one in found] == files
    done = command("classify", "runs/november:fkd", *files, "--json")
    assert [one.values() for one in found] == [
        json.loads(line) for line in done.stdout.splitlines()
    ]
    assert model.classify(photograph(0, 0))[0].image is None


def test_a_search_finds_the_nearest_of_all(model):
    queries, gallery = model.embed("photos/december"), np.stack(list(stored().values()))
    unit = [torch.nn.functional.normalize(torch.from_numpy(v)) for v in (queries, gallery)]
    cosines = unit[0] @ unit[1].T
    keys = list(stored())
    for where in ("vectors", "flat.npy"):
        found = model.search(where, "photos/december", top=7)
        for row, matches in zip(cosines, found, strict=True):
            order = row.argsort(descending=True)[:7]
            assert [one.row for one in matches] == order.tolist()
            assert [one.similarity for one in matches] == pytest.approx(row[order].tolist())
            assert [one.key for one in matches] == [keys[n] for n in order]
            assert all(one.identity == one.key.split("/")[0] for one in matches)
    names = [str(n) for n in range(len(gallery))]
    found = model.search(gallery, "photos/december", top=100, names=names)
    assert [one.row for one in found[0]] == cosines[0].argsort(descending=True).tolist()
    assert all(one.identity == str(one.row) for one in found[0])


def test_blocks_of_a_gallery_make_no_difference(model, monkeypatch):
    whole = model.search("vectors", "photos/december")
    monkeypatch.setattr("launch.models.search._BLOCK", 3)
    for one, other in zip(model.search("vectors", "photos/december"), whole, strict=True):
        assert [match.row for match in one] == [match.row for match in other]


def test_another_models_vectors_are_searched_only_when_asked(model, tmp_path):
    embedded("runs/november:fkd:0:0", tmp_path / "old.safetensors")
    with pytest.raises(perennial.InputError, match="other_model=True"):
        model.search(tmp_path / "old.safetensors", "photos/december")
    found = model.search(tmp_path / "old.safetensors", "photos/december", other_model=True)
    assert len(found) == len(PEOPLE) and len(found[0]) == 5
    small = model.embed("data/november")[:, :5]  # the leading elements count
    [[best]] = model.search(small, photograph(2, 1), top=1, names=["x"] * len(small))
    asked = comparable(torch.from_numpy(model.embed(photograph(2, 1))), 5, True)
    assert best.similarity == pytest.approx(
        (asked @ comparable(torch.from_numpy(small), 5, True).T).max().item()
    )


def test_an_adopted_model_embeds_and_knows_no_class(home, tmp_path):
    saved = adopted(tmp_path / "model", 0, 8)
    model = perennial.load(tmp_path / "model")
    images = Images.open("data/november", None, saved)
    run_embed(saved, images, tmp_path / "out.npy", here, Console(quiet=True))
    assert np.array_equal(model.embed("data/november"), np.load(tmp_path / "out.npy"))
    assert (model.dimension, model.classes) == (8, [])
    with pytest.raises(perennial.InputError, match="knows no class"):
        model.classify("photos/december")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nowhere.jpg", "does not exist"),
        (np.zeros((8, 8, 3)), "array of float64.*uint8"),
        (np.zeros((8, 8), np.uint8), r"shape \(8, 8\)"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], "image 0 is a ndarray"),
        ([3], "image 0 is a int"),
        (["photos"], "photos is a folder among images"),
        (Image.new("F", (8, 8)), "convert the image to mode RGB"),
    ],
)
def test_what_is_no_image_is_one_line(model, given, words):
    with pytest.raises(perennial.InputError, match=words) as caught:
        model.embed(given)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_named(model, tmp_path):
    good = Path("photos/november/ana/0.jpg").read_bytes()
    for name, content in {"a.jpg": good, "b.jpg": b"x", "c.jpg": good[:99]}.items():
        (tmp_path / name).write_bytes(content)
    for asked in (model.embed, model.classify):
        with pytest.raises(perennial.InputError, match=r"2 of 3 images .*b\.jpg \(.*c\.jpg \("):
            asked(tmp_path)
    assert model.embed([]).shape == (0, model.dimension)


def test_damaged_galleries_are_one_line(model, tmp_path):
    with pytest.raises(perennial.InputError, match="holds no gallery"):
        model.search(tmp_path, "photos/december")
    np.save(tmp_path / "v.npy", np.zeros((3, 4), np.float32))
    (tmp_path / "v.ids.tsv").write_text("key\tidentity\na\tb\n")
    (tmp_path / "v.json").write_text(f'{{"model": "{model.fingerprint}"}}')
    with pytest.raises(perennial.InputError, match="3 vectors, 1 ids"):
        model.search(tmp_path / "v.npy", "photos/december")
    (tmp_path / "v.npy").write_bytes(b"x")
    with pytest.raises(perennial.InputError, match="damaged"):
        model.search(tmp_path / "v.npy", "photos/december")
    with pytest.raises(perennial.InputError, match="a name for each"):
        model.search(np.zeros((3, 4), np.float32), "photos/december", names=["a"])


def test_a_run_has_the_figures_of_compare(home):
    run = perennial.Run("runs/november")
    rows = {(row["method"], row["step"]): row for row in run.results()}
    for told in compare([Path("runs/november")]):
        assert rows[told["method"], told["step"]]["top1"] == told["top1"]["mean"]
    assert [perennial.load(name).fingerprint for name in run.models] == [
        run.model(method, 0, step).fingerprint for method in run.methods for step in run.steps
    ]
    logged = [line["iteration"] for line in run.training() if line["method"] == "fkd"]
    assert logged and all(isinstance(n, int) for n in logged)
    with pytest.raises(perennial.InputError, match="no run's folder"):
        perennial.Run("photos")


def test_the_page_is_true(home):
    names, held = {}, 0
    for block in blocks(PAGE):
        held += execute(block, names)
    assert held > 15


def test_importing_it_imports_nothing_heavy(home):
    """Neither do a model and its vectors start Ray, nor import it."""
    script = (
        "import sys, perennial\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'PIL', 'launch', 'trainer', 'ray'}\n"
        "assert not heavy & {*sys.modules}, heavy & {*sys.modules}\n"
        "perennial.load('runs/november:fkd').search('vectors', 'photos/december')\n"
        "assert 'ray' not in sys.modules\n"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root}, check=True
    )
