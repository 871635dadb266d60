"""A model as a file for a service: the same vectors, of whichever batch, or no file."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.writing.writer import write_dataset
from launch.inference.embed import embed
from launch.models.export import Wanted, run_export
from tests.commands import perennial
from tests.conftest import jpeg
from tests.launch.test_galleries import adopted
from tests.trainer.loops import train_step
from trainer.adopted import Pixels, read_embedder
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.checkpoint import save_folder
from trainer.decisions import BiasCorrected, Decision, LargestOfHeads, NearestMean, decision_files
from trainer.exporting import FORMATS, Exported, _means, quantised
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows
from trainer.model import Model, save_model

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def model(small_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported")
    train_step(small_folder, out, "finetune", 0)
    return Model.open(out / "0" / "model")


@pytest.fixture(scope="module")
def test_set(tmp_path_factory):
    """Six identities to be looked for."""
    images = [
        SourceImage(jpeg(i, c), f"id-{i}", f"camera-{c}", f"{i}/{c}", role)
        for i in range(6)
        for c, role in enumerate(("query", "gallery", "gallery"))
    ]
    folder = tmp_path_factory.mktemp("tested") / "d"
    write_dataset(images, folder, {}, 10)
    return folder


def real(small):
    pixels = []
    embed(
        lambda images: pixels.append(images) or images.flatten(1),
        small,
        np.arange(12),
        PipelineSettings(),
        12,
    )
    return pixels[0]


def expected(model, images):
    with torch.inference_mode():
        return model.embedder()(images).numpy()


def test_onnx_takes_pixels_and_any_batch_and_is_adopted_again(model, small, tmp_path):
    file = tmp_path / "m.onnx"
    run_export(model, Wanted("onnx", file), QUIET)
    session = onnxruntime.InferenceSession(file)
    images = real(small)
    for some in (images, images[:1], images[:5]):
        (found,) = session.run(None, {"pixels": some.float().numpy()})
        np.testing.assert_allclose(found, expected(model, some), rtol=1e-4, atol=1e-5)
    assert session.get_modelmeta().custom_metadata_map["fingerprint"] == model.fingerprint
    done = perennial(
        *("adopt", file, "--out", tmp_path / "again", "--size", "16x16", "--mean", "0"),
        *("--std", "1"),
    )
    assert done.returncode == 0, done.stderr
    again = Model.open(tmp_path / "again")
    np.testing.assert_allclose(expected(again, images), expected(model, images), atol=1e-5)


def test_torchscript_leaves_the_callers_pixels_alone_and_takes_integers(model, small, tmp_path):
    file = tmp_path / "m.pt"
    run_export(model, Wanted("torchscript", file), QUIET)
    about = {"perennial.json": ""}
    loaded = torch.jit.load(file, _extra_files=about)
    images = real(small)
    given = images.float()
    for some in (given, images):
        np.testing.assert_allclose(loaded(some).numpy(), expected(model, images), atol=1e-5)
    assert torch.equal(given, images.float())
    assert json.loads(about["perennial.json"])["fingerprint"] == model.fingerprint


def test_safetensors_says_how_its_network_is_built(model, small, tmp_path):
    file = tmp_path / "m.safetensors"
    run_export(model, Wanted("safetensors", file), QUIET)
    with safe_open(file, "pt") as held:
        settings = EmbedderSettings.model_validate_json(held.metadata()["embedder"])
        assert held.metadata()["fingerprint"] == model.fingerprint
        network = build_embedder(settings, seed=5)
        network.load_state_dict({name: held.get_tensor(name) for name in held.keys()})  # noqa: SIM118
    images = real(small)
    with torch.inference_mode():
        assert np.array_equal(network.eval()(images).numpy(), expected(model, images))


NETWORKS = [
    EmbedderSettings(architecture="resnet32", dimension=64, projection="none", activation="cosine"),
    EmbedderSettings(architecture="resnet18", stem="small", dimension=24, last_relu=False),
    EmbedderSettings(width=4, dimension=8, depth=1, convolutions="channels"),
]


@pytest.mark.parametrize("settings", NETWORKS, ids=lambda s: s.architecture)
def test_every_kind_of_network_is_exported(settings, tmp_path):
    embedder = build_embedder(settings)
    rows = ShardedRows(0, 3, torch.randn(3, settings.dimension), Ranks())
    save_model(
        folder=tmp_path / "m",
        settings=settings,
        image_size=(20, 28),  # no multiples of what is pooled to
        classifier=MarginLoss(ClassifierSettings(), 0, torch.device("cpu")),
        embedder=embedder,
        blocks=[rows],
        names=["a", "b", "c"],
        ranks=Ranks(),
    )
    for to, ending in (("onnx", "onnx"), ("torchscript", "pt")):
        run_export(Model.open(tmp_path / "m"), Wanted(to, tmp_path / f"x.{ending}"), QUIET)


@pytest.mark.parametrize(("length", "parts"), [(2, 4), (5, 4), (7, 4), (4, 4), (9, 1), (3, 2)])
def test_pooling_by_a_product_is_adaptive_pooling(length, parts):
    x = torch.randn(2, 3, length, length)
    matrix = _means(length, parts)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, parts)
    torch.testing.assert_close(matrix @ x @ matrix.T, expected)


def test_a_file_with_other_vectors_is_not_left(model, tmp_path, monkeypatch):
    right = FORMATS["onnx"].write

    def wrong(program):
        with torch.no_grad():
            program.embedder.norm.bias += 0.1
        return right(program)

    broken = FORMATS["onnx"].__class__((".onnx",), wrong, FORMATS["onnx"].read)
    monkeypatch.setitem(FORMATS, "onnx", broken)
    with pytest.raises(InputError, match="is not written: its vectors differ"):
        run_export(model, Wanted("onnx", tmp_path / "m.onnx"), QUIET)
    assert not list(tmp_path.iterdir())


RULES = {
    "none": None,
    "nearest-mean": lambda c, d: (NearestMean(), {"means": torch.eye(c, d)}),
    "heads": lambda c, d: (LargestOfHeads(), {"ends": torch.tensor([4, c])}),
    "bias": lambda c, d: (BiasCorrected(), {"alpha": torch.rand(c), "beta": torch.rand(c)}),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_classifier_goes_along_with_its_decision(rule, model, small, tmp_path):
    decision = Decision()
    beside = model.folder.with_name("decision")
    if RULES[rule]:
        files, card = decision_files(*RULES[rule](model.rows, model.settings.dimension), model)
        save_folder(beside, files, card, Ranks())
        decision = Decision.open(beside, model)
    images = real(small)
    try:
        for to, name in (("onnx", "m.onnx"), ("torchscript", "m.pt")):
            run_export(model, Wanted(to, tmp_path / name, classes=True), QUIET)
            assert (tmp_path / "m.classes.txt").read_text().splitlines() == model.names()
    finally:
        for path in beside.glob("*"):
            path.unlink()
    vectors = torch.from_numpy(expected(model, images))
    directions = model.frozen_rows(Ranks()).weight.detach()
    scores = decision.scores(model, vectors, directions).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    outputs = session.run(["vectors", "scores"], {"pixels": images.float().numpy()})
    found = dict(zip(("vectors", "scores"), outputs, strict=True))
    np.testing.assert_allclose(found["vectors"], vectors, atol=1e-5)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-3, atol=1e-5)
    assert np.array_equal(found["scores"].argmax(1), scores.argmax(1))
    told = torch.jit.load(tmp_path / "m.pt")(images)[1]
    np.testing.assert_allclose(told.numpy(), scores, rtol=1e-3, atol=1e-5)


def test_int8_is_smaller_and_tells_what_it_costs(model, test_set, tmp_path):
    words = ("export", model.folder, "--to", "onnx", "--on", test_set)
    whole = perennial(*words, "--out", tmp_path / "m.onnx")
    assert whole.returncode == 0, whole.stderr
    assert f"18 images of {test_set}: max |difference|" in whole.stdout
    small = perennial(*words, "--int8", "--out", tmp_path / "int8.onnx")
    assert small.returncode == 0, small.stderr
    assert "int8 on 18 images" in small.stdout and "top1" in small.stdout
    sizes = [(tmp_path / name).stat().st_size for name in ("m.onnx", "int8.onnx")]
    assert sizes[1] < sizes[0]
    pixels = Pixels(size=(16, 16), mean=(0,) * 3, std=(1,) * 3)
    with pytest.raises(InputError, match="depends on the other images of its batch"):
        read_embedder(tmp_path / "int8.onnx", None, None, pixels)
    assert "depend a little on the other images" in small.stdout


def test_quantised_vectors_are_near(model, small):
    program = Exported(model)
    runs = FORMATS["onnx"].read(quantised(FORMATS["onnx"].write(program)))
    images = real(small)
    (found,) = runs(images)
    cosine = torch.cosine_similarity(found, torch.from_numpy(expected(model, images)))
    assert 0.9 < cosine.min() < 0.9999999


def test_what_cannot_be_exported_is_refused_with_a_remedy(model, tmp_path):
    graph = adopted(tmp_path / "graph", 0, 8)
    with pytest.raises(InputError, match="use the file that it was adopted from"):
        run_export(graph, Wanted("onnx", tmp_path / "g.onnx"), QUIET)
    refused = {
        "end its name in .onnx": Wanted("onnx", tmp_path / "m.pt"),
        "exists": Wanted("onnx", tmp_path / "graph.onnx"),
        "say --to onnx": Wanted("torchscript", tmp_path / "m.pt", int8=True),
        "say --on": Wanted("onnx", tmp_path / "m.onnx", int8=True),
        "weights alone": Wanted("safetensors", tmp_path / "m.safetensors", classes=True),
    }
    for words, wanted in refused.items():
        with pytest.raises(InputError, match=words):
            run_export(model, wanted, QUIET)


def test_an_adopted_torchvision_network_is_exported_with_its_scaling(tmp_path):
    import torchvision
    from safetensors.torch import save_file

    from trainer.model import save_adopted

    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(weights=None)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    pixels = Pixels(size=(40, 40), mean=(10.0, 20.0, 30.0), std=(50.0, 60.0, 70.0), bgr=True)
    given = read_embedder(tmp_path / "w.safetensors", "squeezenet1_1", "none", pixels)
    d = given[0].dimension
    save_adopted(tmp_path / "m", *given, ClassifierSettings(), torch.empty(0, d), [])
    model = Model.open(tmp_path / "m")
    run_export(model, Wanted("onnx", tmp_path / "m.onnx"), QUIET)
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {"pixels": images.float().numpy()})
    np.testing.assert_allclose(found, expected(model, images), rtol=1e-3, atol=1e-4)
