"""`perennial classify` gives images the classes that an evaluation would count."""

import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from data_shards.images import ImageSettings, normalise
from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.writer import write_dataset
from launch.inference import pictures
from launch.inference.embed import embed
from launch.inference.pictures import images_at
from launch.models.classify import Classifier, classes_table
from tests.commands import perennial
from tests.trainer.loops import train_step
from trainer.adopted import AdoptedSettings, Pixels
from trainer.checkpoint import DamagedError, save_folder
from trainer.decisions import Decision, LargestOfHeads, NearestMean, decision_files
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings
from trainer.model import Model, save_adopted

COUNT = 70
"""More than go through the network at a time."""


@pytest.fixture(scope="module")
def model(small_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("classified")
    train_step(small_folder, out, "finetune", 0)
    return Model.open(out / "0" / "model")


@pytest.fixture(scope="module")
def images(small, tmp_path_factory):
    """A folder of the first images of the dataset, byte for byte."""
    folder = tmp_path_factory.mktemp("images")
    for sample in range(COUNT):
        path = folder / f"{sample // 10}" / f"{sample:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(small.image(sample))
    return folder


def cli(*arguments):
    wide = {**os.environ, "COLUMNS": "300"}  # a table folds long paths
    done = perennial("classify", *arguments, env=wide)
    return done.returncode, done.stdout, done.stderr


def vectors(model, dataset):
    samples = np.arange(min(COUNT, len(dataset)))
    return torch.from_numpy(embed(model.embedder(), dataset, samples, PipelineSettings(), 16))


def rows(model):
    return model.frozen_rows(Ranks()).weight.detach().double()


def beside(model, rule, prepared):
    files, card = decision_files(rule, prepared, model)
    save_folder(model.folder.with_name("decision"), files, card, Ranks())


@pytest.fixture
def means(model):
    """A decision by nearest means is beside the model while a test runs."""
    found = torch.nn.functional.normalize(torch.randn(model.rows, model.settings.dimension))
    beside(model, NearestMean(), {"means": found})
    yield found.double()
    for path in model.folder.with_name("decision").iterdir():
        path.unlink()
    model.folder.with_name("decision").rmdir()


def check(found, expected, names, score="probability"):
    """`found` are lines of JSON, `expected` [n, C] the scores of a separate computation."""
    for line, shares in zip(found, expected, strict=True):
        order = shares.argsort(descending=True)[:5]
        assert [one["class"] for one in line["classes"]] == [names[row] for row in order]
        assert all(one.keys() == {"class", score} for one in line["classes"])
        told = [one[score] for one in line["classes"]]
        assert told == pytest.approx(shares[order].tolist(), rel=1e-4)


def test_the_largest_logit_decides_as_in_an_evaluation(model, images, small):
    code, out, err = cli(model.folder, images, "--json")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["image"] for line in lines] == sorted(map(str, images.glob("*/*.jpg")))
    given = vectors(model, small)
    check(lines, (given.double() @ rows(model).T).softmax(dim=1), model.names())
    classes = Decision().classes(model, given)
    names = model.names()
    assert [line["classes"][0]["class"] for line in lines] == [names[row] for row in classes]


def test_nearest_means_beside_the_model_decide_and_tell_cosines(model, images, small, means):
    found = [one.values() for batch in Classifier(model)(images_at([images])) for one in batch]
    given = vectors(model, small).double()
    cosines = torch.nn.functional.cosine_similarity(given[:, None], means, dim=2)
    check(found, cosines, model.names(), "similarity")
    unit = torch.nn.functional.normalize(given)
    nearest = ((unit[:, None] - means) ** 2).sum(dim=2).argmin(dim=1)
    names = model.names()
    assert [line["classes"][0]["class"] for line in found] == [names[row] for row in nearest]


def test_a_table_shows_the_five_likeliest(model, images):
    code, out, err = cli(model.folder, images / "0" / "000.jpg")
    assert code == 0, err
    assert out.count("000.jpg") == 1 and out.count("%") == 5
    assert "class" in out and "probability" in out


def test_the_table_of_nearest_means_has_similarities(model, images, means):
    [found] = Classifier(model)([images / "0" / "000.jpg"])
    shown = Console(file=io.StringIO(), width=300)
    shown.print(classes_table(found))
    out = shown.file.getvalue()
    assert "similarity" in out and "probability" not in out and "%" not in out
    assert all(f"{value:.4f}" in out for _, value in found[0].classes)


def test_pictures_become_what_an_import_would_store_of_them(model, tmp_path):
    """Other formats, sizes and orientations: the same pixels as in a dataset made of them."""
    generator = np.random.default_rng(0)
    for number, name in enumerate(("a.png", "b.bmp", "c.jpg", "d.webp")):
        pixels = generator.integers(0, 255, (20 + number, 31, 3)).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "c.jpg" else 1
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    paths = images_at([tmp_path])
    stored = [normalise(path.read_bytes(), ImageSettings()).jpeg for path in paths]
    of = [SourceImage(jpeg, "somebody", "", str(n)) for n, jpeg in enumerate(stored)]
    write_dataset(of, tmp_path / "dataset", {})
    dataset = ShardDataset.open(tmp_path / "dataset")
    data = PipelineSettings(image_size=model.image_size)
    given = embed(model.embedder(), dataset, np.arange(len(paths)), data, 16)
    expected = (torch.from_numpy(given).double() @ rows(model).T).softmax(dim=1)
    found = [one.values() for batch in Classifier(model)(paths) for one in batch]
    check(found, expected, model.names())


def test_damaged_images_are_named_and_the_others_classified(model, images, tmp_path):
    whole = (images / "0" / "000.jpg").read_bytes()
    contents = {"a.jpg": whole, "b.jpg": whole[:99], "c.jpg": b"", "d.txt": b"x", "e.jpg": whole}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    code, out, err = cli(model.folder, tmp_path, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 2
    assert [bool(line.get("classes")) for line in lines] == [True, False, False, False, True]
    for name in ("b.jpg", "c.jpg", "d.txt"):
        (told,) = [line for line in err.splitlines() if name in line]
        assert told.startswith("! ")
    assert "3 of 5 files are not classified" in err and "Traceback" not in err


def test_what_only_the_decoder_refuses_costs_no_other_image(model, images, monkeypatch):
    """DALI gives up a whole batch for one image."""
    real = pictures.ImageStream

    def refusing(dataset, requests, count, *rest, **options):
        (request,) = requests
        if any(jpeg[-1] == 0x58 for jpeg in request.jpegs):
            raise RuntimeError("cannot decode it")
        return real(dataset, iter([request]), count, *rest, **options)

    monkeypatch.setattr(pictures, "ImageStream", refusing)
    good, bad = (images / "0" / f"00{n}.jpg" for n in range(2))
    bad.write_bytes(bad.read_bytes() + b"X")
    try:
        [[first, second, third]] = Classifier(model)([good, bad, good])
    finally:
        bad.write_bytes(bad.read_bytes()[:-1])
    assert first == third and first.classes and not first.refused
    assert second.refused == "damaged: cannot decode it"


def test_a_models_batch_of_images_does_not_change_what_is_said_of_each(model, images):
    paths = images_at([images])
    classifier = Classifier(model)
    together = [one for batch in classifier(paths) for one in batch]
    for path, one in zip(paths, together, strict=True):
        [[alone]] = classifier([path])
        assert alone.image == one.image == path
        assert [name for name, _ in alone.classes] == [name for name, _ in one.classes]
        shares = [share for _, share in one.classes]
        assert [share for _, share in alone.classes] == pytest.approx(shares, rel=1e-5)


def test_few_pixels_are_decoded_at_a_time(model, images, monkeypatch):
    monkeypatch.setattr(pictures, "_PIXELS", 3 * 16 * 16)
    held, real = [], pictures.ImageStream

    def counting(dataset, requests, count, *rest, **options):
        held.append(count)
        return real(dataset, requests, count, *rest, **options)

    monkeypatch.setattr(pictures, "ImageStream", counting)
    found = [one for batch in Classifier(model)(images_at([images])) for one in batch]
    assert len(found) == COUNT == sum(held) and max(held) == 3
    assert all(one.classes for one in found)


def test_a_model_without_rows_is_refused(tmp_path):
    settings = AdoptedSettings(
        source="torchvision",
        architecture="resnet18",
        pixels=Pixels(size=(8, 8), mean=(0, 0, 0), std=(1, 1, 1)),
        dimension=4,
    )
    save_adopted(
        folder=tmp_path / "model",
        settings=settings,
        tensors={"weight": torch.zeros(1)},
        classifier=ClassifierSettings(),
        weight=torch.zeros(0, 4),
        names=[],
    )
    with pytest.raises(InputError, match=r"knows no class.*--classifier") as caught:
        Classifier(Model.open(tmp_path / "model"))
    assert "\n" not in str(caught.value)


def test_the_decision_of_another_model_is_refused(model, tmp_path):
    other = tmp_path / "model"
    other.mkdir()
    for path in model.folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    card = json.loads((other / "manifest.json").read_text())
    beside(model, LargestOfHeads(), {"ends": torch.tensor([model.rows])})
    decision = model.folder.with_name("decision")
    try:
        assert Classifier(model).decision.rule == LargestOfHeads()
        decision.rename(other.with_name("decision"))
        # the same model in another folder keeps its decision
        assert Classifier(Model.open(other)).decision.rule == LargestOfHeads()
        del card["classifier.safetensors"]
        (other / "manifest.json").write_text(json.dumps(card))
        with pytest.raises(InputError, match="is the decision of model") as caught:
            Classifier(Model.open(other))
        assert "\n" not in str(caught.value)
    finally:
        assert not decision.exists()


def test_a_decision_of_wrong_shapes_is_damaged(model, tmp_path):
    for rule, prepared in (
        (NearestMean(), {"means": torch.zeros(model.rows - 1, model.settings.dimension)}),
        (NearestMean(), {"means": torch.zeros(model.rows, model.settings.dimension + 1)}),
        (NearestMean(), {"middles": torch.zeros(model.rows, model.settings.dimension)}),
        (LargestOfHeads(), {"ends": torch.tensor([model.rows - 1])}),
    ):
        files, card = decision_files(rule, prepared, model)
        save_folder(tmp_path / "decision", files, card, Ranks())
        with pytest.raises(DamagedError, match="prepared"):
            Decision.open(tmp_path / "decision", model)


def test_nothing_to_classify_is_one_line(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        images_at([tmp_path / "none"])
    with pytest.raises(InputError, match="no image in"):
        images_at([tmp_path])
