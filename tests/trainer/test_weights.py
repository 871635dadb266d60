"""Weights from outside: by others' names, from graphs, and refused where they do not fit."""

import os
from pathlib import Path

import onnx
import pytest
import torch
import torchvision
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

from data_shards.settings import InputError
from launch.models.adopt import Outside, run_adopt
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.model import Model
from trainer.weights import StartSettings, load_weights, read_state_dict

FACES = EmbedderSettings(architecture="mobilefacenet", dimension=16)
pytestmark = pytest.mark.filterwarnings("ignore")


def learned(settings, seed=1):
    """A network whose batch normalisations have statistics and factors of their own."""
    network = build_embedder(settings, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)):
        for tensor in (norm.running_mean, norm.bias.data):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 10)
        for tensor in (norm.running_var, norm.weight.data):
            tensor.copy_(0.8 + torch.rand(tensor.shape, generator=generator) / 2)
    return network


def images(count=2, size=(112, 112)):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)


def adopt(file, out, size="112x112", scale=("127.5", "127.5"), bgr=False, **given):
    files = {"architecture": "mobilefacenet", "layer": None, "classifier": None, "names": None}
    margin, quiet = "kind=cosface,scale=32", Console(quiet=True)
    run_adopt(Outside(file, **files | given), out, size, scale, False, bgr, margin, quiet)
    return Model.open(out)


def export(network, path, folded):
    """The network behind its pixels; folded: with batch normalisation in the convolutions."""
    parts = nn.Sequential(network.trunk, network.project, network.norm).eval()
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    torch.onnx.export(
        parts,
        (torch.randn(2, 3, 112, 112),),
        path,
        dynamo=False,
        training=mode,
        input_names=["pixels"],
        dynamic_axes={"pixels": {0: "n"}},
    )


def theirs(network):
    """An iresnet's state dict by InsightFace's names, with the bias that its last layer has."""
    own, bias = network.state_dict(), torch.linspace(-1, 1, 16)
    named = {k.removeprefix("trunk."): v for k, v in own.items() if k.startswith("trunk.")}
    named |= {k.replace("norm.", "features."): v for k, v in own.items() if k.startswith("norm.")}
    named["features.running_mean"] = own["norm.running_mean"] + bias
    return named | {"fc.weight": own["project.weight"], "fc.bias": bias}


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_weights_by_insightfaces_names_give_what_they_gave(prefix, tmp_path):
    settings = EmbedderSettings(architecture="iresnet18", dimension=16)
    network, other = learned(settings), build_embedder(settings)
    given = {prefix + name: tensor for name, tensor in theirs(network).items()}
    save_file(given, tmp_path / "w.safetensors")
    load_weights(other, settings, read_state_dict(tmp_path / "w.safetensors"), "w")
    with torch.inference_mode():
        found, expected = other.eval()(images()), network(images())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_torchvisions_weights_fill_the_trunk_and_leave_the_projection(tmp_path):
    settings = EmbedderSettings(architecture="resnet18", dimension=16)
    network = torchvision.models.resnet18(num_classes=5)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    other, before = build_embedder(settings), build_embedder(settings)
    load_weights(other, settings, read_state_dict(tmp_path / "w.safetensors"), "w")
    assert torch.equal(other.trunk.conv1.weight, network.conv1.weight)
    assert torch.equal(other.project.weight, before.project.weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("trunk.0.weight"), r"misses trunk\.0\.weight: give the architecture"),
        (lambda t: t.update(extra=torch.ones(1)), "has unknown extra: leave them out"),
        (
            lambda t: t.update({"project.weight": torch.ones(8, 512)}),
            r"has project\.weight 8x512 for 16x512: set embedder\.dimension",
        ),
        (lambda t: t["norm.weight"].fill_(torch.nan), "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change, words):
    embedder = build_embedder(FACES)
    given = {name: tensor.clone() for name, tensor in embedder.state_dict().items()}
    change(given)
    with pytest.raises(InputError, match=f"w does not fit .*mobilefacenet: .*{words}"):
        load_weights(embedder, FACES, given, "w")


def test_pickles_and_damaged_files_are_refused(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="save_file"):
        read_state_dict(tmp_path / "w.pth")
    (tmp_path / "w.pth").rename(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="no safetensors file, or is damaged"):
        read_state_dict(tmp_path / "w.safetensors")


def test_a_start_counts_by_its_content(tmp_path):
    for name in "ab":
        save_file({"w": torch.ones(3)}, tmp_path / f"{name}.safetensors")
    first, second = (StartSettings(file=tmp_path / f"{n}.safetensors").pinned() for n in "ab")
    assert first.deciding() == second.deciding() != StartSettings(file=tmp_path).deciding()
    save_file({"w": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"not start\.sha256"):
        first.pinned()


def test_a_graph_becomes_a_network_that_gives_what_it_gave(tmp_path):
    network = learned(FACES)
    export(network, tmp_path / "net.onnx", folded=False)
    model = adopt(tmp_path / "net.onnx", tmp_path / "model")
    assert (model.adopted, model.settings, model.image_size) == (False, FACES, (112, 112))
    with torch.inference_mode():
        found = model.embedder()(images())
        torch.testing.assert_close(found, network(images()), rtol=1e-3, atol=1e-3)
    # what the model expects of pixels goes into the first convolution
    scaled = adopt(
        tmp_path / "net.onnx", tmp_path / "bgr", scale=("127.5", "100,128,200"), bgr=True
    )
    std = torch.tensor([100.0, 128, 200]).view(3, 1, 1)
    pixels = (images().flip(1).float() - 127.5) / std
    with torch.inference_mode():
        expected = network.norm(network.project(network.trunk(pixels)))
        found = scaled.embedder()(images())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_folded_graph_needs_images(small_folder, tmp_path):
    network = learned(FACES)
    export(network, tmp_path / "net.onnx", folded=True)
    with pytest.raises(InputError, match="give --images"):
        adopt(tmp_path / "net.onnx", tmp_path / "model")
    model = adopt(tmp_path / "net.onnx", tmp_path / "model", images=str(small_folder))
    with torch.inference_mode():
        found = model.embedder()(images())
        torch.testing.assert_close(found, network(images()), rtol=1e-3, atol=2e-3)


def test_a_folded_iresnet_is_one(tmp_path):
    """Its blocks begin with a batch normalisation, which cannot be folded, behind one that is."""
    export(
        learned(EmbedderSettings(architecture="iresnet18", dimension=16)),
        tmp_path / "net.onnx",
        folded=True,
    )
    with pytest.raises(InputError, match="give --images"):  # so that its vectors agreed
        adopt(tmp_path / "net.onnx", tmp_path / "model", architecture="iresnet18")


def test_graphs_and_weights_of_another_network_are_refused(tmp_path):
    export(learned(FACES), tmp_path / "net.onnx", folded=False)
    for given, words in (
        ({"architecture": "mobilefacenet_relu6"}, "is not of this --architecture"),
        ({"architecture": "iresnet18"}, "is not of this --architecture"),
        ({"scale": ("120", "127.5")}, "--mean: mobilefacenet"),
        ({"layer": "fc"}, "--layer and --trust are not for"),
        ({"architecture": None, "images": "x"}, "--images are for"),
    ):
        with pytest.raises(InputError, match=words):
            adopt(tmp_path / "net.onnx", tmp_path / "model", **given)


@pytest.mark.parametrize("before", ["PRelu", None])
def test_a_graph_of_the_same_layers_that_computes_something_else_is_refused(before, tmp_path):
    """Layers and weights fit; a sign is turned before the first PReLU, or behind all layers.

    The network gives every image almost the same vector: off by 0.03 % of its length it is another.
    """
    export(learned(FACES), tmp_path / "net.onnx", folded=False)
    graph = onnx.load(tmp_path / "net.onnx")
    nodes = graph.graph.node
    if before:
        place = next(i for i, node in enumerate(nodes) if node.op_type == before)
        nodes.insert(place, onnx.helper.make_node("Neg", [nodes[place].input[0]], ["turned"]))
        nodes[place + 1].input[0] = "turned"
    else:
        name = graph.graph.output[0].name
        nodes[-1].output[0] = "straight"
        nodes.append(onnx.helper.make_node("Neg", ["straight"], [name]))
    onnx.save(graph, tmp_path / "net.onnx")
    with pytest.raises(InputError, match="vectors are off by"):
        adopt(tmp_path / "net.onnx", tmp_path / "model")


@pytest.mark.skipif(
    "PERENNIAL_REAL_DATA" not in os.environ, reason="PERENNIAL_REAL_DATA names no folder"
)
def test_a_published_face_model_becomes_trainable(small_folder, tmp_path):
    file = Path(os.environ["PERENNIAL_REAL_DATA"]) / "face_model_a.onnx"
    given = {"architecture": "mobilefacenet_relu6", "images": str(small_folder)}
    assert adopt(file, tmp_path / "model", **given).settings.dimension == 128
