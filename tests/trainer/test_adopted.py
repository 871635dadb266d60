"""Models from outside: what they give equals what they gave, and nothing of them is unpickled."""

import io
import json
import pickle
import zipfile

import pytest
import torch
import torchvision
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.v2.functional import resize

from data_shards.settings import InputError
from launch.adopting import Outside, run_adopt
from trainer.adopted import Pixels, read_embedder
from trainer.heads.collectives import Ranks
from trainer.model import Model
from trainer.programs import load_program

SIZE = (16, 20)
MODEL = "models/model.json"
pytestmark = pytest.mark.filterwarnings("ignore")


def network() -> nn.Module:
    torch.manual_seed(0)
    trunk = (nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    made = nn.Sequential(*trunk, nn.Flatten(), nn.Linear(4, 8))
    made(torch.randn(32, 3, *SIZE))  # batch normalisation learns some statistics
    return made.eval()


def images(count: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def save_script(net, path):
    torch.jit.script(net).save(path)


def save_exported(net, path, batch=3, free=True):
    free_batch = ({0: torch.export.Dim("batch")},) if free else None
    given = (torch.randn(batch, 3, *SIZE),)
    torch.export.save(torch.export.export(net, given, dynamic_shapes=free_batch), path)


def save_onnx(net, path, batch=3, free=True):
    pytest.importorskip("onnxruntime")
    names = {"input_names": ["pixels"], "output_names": ["vectors"]}
    axes = {"pixels": {0: "b"}, "vectors": {0: "b"}} if free else None
    given = (torch.randn(batch, 3, *SIZE),)
    torch.onnx.export(net, given, path, dynamo=False, dynamic_axes=axes, **names)


FORMATS = {"pt": save_script, "pt2": save_exported, "onnx": save_onnx}


def adopt(file, out, size="16x20", scale=("127.5", "127.5"), unit=False, bgr=False, **given):
    files = {"architecture": None, "layer": None, "classifier": None, "names": None, **given}
    margin = files.pop("margin", "kind=cosface,scale=32")
    run_adopt(Outside(file, **files), out, size, scale, unit, bgr, margin, Console(quiet=True))
    return Model.open(out)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_adopted_program_gives_what_the_original_gives(suffix, tmp_path):
    net, file = network(), tmp_path / f"net.{suffix}"
    FORMATS[suffix](net, file)
    scale = "0.4,0.5,0.6", "0.2,0.25,0.3"
    model = adopt(file, tmp_path / "model", scale=scale, unit=True, bgr=True)
    mean, std = (torch.tensor([float(v) for v in t.split(",")]).view(3, 1, 1) for t in scale)
    given = images(5)
    pixels = (given.double()[:, [2, 1, 0]] / 255 - mean) / std
    with torch.inference_mode():
        expected = net(pixels.float())
        found = model.embedder()(given)
    assert (model.settings.dimension, model.rows, model.adopted) == (8, 0, True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_adopted_weights_give_what_the_network_gives_without_its_classifier(tmp_path):
    torch.manual_seed(0)
    net = torchvision.models.shufflenet_v2_x0_5(num_classes=7).eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    given = images(3, (32, 32))
    for layer, dropped in ((None, "fc"), ("none", None)):
        out = tmp_path / f"model-{layer}"
        named = {"architecture": "shufflenet_v2_x0_5", "layer": layer}
        model = adopt(tmp_path / "w.safetensors", out, "32x32", ("0", "255"), **named)
        bare = torchvision.models.shufflenet_v2_x0_5(num_classes=7).eval()
        bare.load_state_dict(net.state_dict())
        if dropped:
            bare.fc = nn.Identity()
        with torch.inference_mode():
            expected, found = bare(given / 255), model.embedder()(given)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_images_of_another_size_are_resized(tmp_path):
    save_script(network(), tmp_path / "net.pt")
    embedder = adopt(tmp_path / "net.pt", tmp_path / "model").embedder()
    given = images(2, (40, 33))
    resized = resize(given.float(), list(SIZE), antialias=True)
    torch.testing.assert_close(embedder.prepare(given), (resized - 127.5) / 127.5)


@pytest.mark.parametrize(("save", "suffix"), [(save_exported, "pt2"), (save_onnx, "onnx")])
def test_a_program_of_a_fixed_batch_is_run_in_that_batch(save, suffix, tmp_path):
    net, file = network(), tmp_path / f"net.{suffix}"
    save(net, file, batch=4, free=False)
    model = adopt(file, tmp_path / "model", scale=("0", "1"))
    given = images(7)
    with torch.inference_mode():
        expected, found = net(given.float()), model.embedder()(given)
    assert model.settings.batch == 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_network_in_training_mode_is_refused(tmp_path):
    torch.jit.trace(network().train(), torch.randn(3, 3, *SIZE)).save(tmp_path / "net.pt")
    # traced code keeps batch normalisation in the mode it was traced in
    with pytest.raises(InputError, match=r"depends on the other images|cannot be run"):
        adopt(tmp_path / "net.pt", tmp_path / "model")


def test_pickles_and_what_else_cannot_be_read_are_refused(tmp_path):
    net = network()
    torch.save(net, tmp_path / "pickled.pt")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    (tmp_path / "torn.onnx").write_bytes(b"torn")
    (tmp_path / "torn.pt2").write_bytes(b"torn")
    save_exported(net, tmp_path / "whole.pt2")
    torn = changed((tmp_path / "whole.pt2").read_bytes(), lambda e: e.update({MODEL: b"{"}))
    (tmp_path / "half.pt2").write_bytes(torn)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    pytest.importorskip("onnxruntime")
    for name, architecture, words in (
        ("pickled.pt", None, "is a pickled file"),
        ("w.pth", None, "save the weights as .safetensors"),
        ("torn.onnx", None, "cannot be read"),
        ("torn.pt2", None, "is damaged"),
        ("half.pt2", None, "is damaged"),
        ("missing.pt", None, "does not exist"),
        ("w.safetensors", None, "by --architecture"),
        ("w.safetensors", "resnet19", "did you mean resnet18"),
        ("w.safetensors", "resnet18", "not the weights of resnet18"),
    ):
        with pytest.raises(InputError, match=words):
            adopt(tmp_path / name, tmp_path / "model", architecture=architecture)
    assert not (tmp_path / "model").exists()


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def changed(content: bytes, change) -> bytes:
    """An archive of torch.export whose entries `change` may change (None: left out) or add."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        entries = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        change(entries)
        for name, value in entries.items():
            new.writestr(f"net/{name}", value)
    return out.getvalue()


def model_json(entries, edit):
    model = json.loads(entries[MODEL])
    edit(model)
    entries[MODEL] = json.dumps(model).encode()


def first_node(model):
    return model["graph_module"]["graph"]["nodes"][0]


def test_what_an_exported_program_would_run_while_loading_is_refused(tmp_path):
    file, mark = tmp_path / "net.pt2", tmp_path / "ran"
    save_exported(network(), file)
    whole = file.read_bytes()
    weights = "data/weights/model_weights_config.json"

    def pickled(entries):
        config = json.loads(entries[weights])
        first = next(iter(config["config"].values()))
        first["use_pickle"] = True
        entries[f"data/weights/{first['path_name']}"] = pickle.dumps(Touch(mark))
        entries[weights] = json.dumps(config).encode()

    def expression(model):
        text = f"__import__('pathlib').Path('{mark}').touch()"
        text = json.dumps(model).replace("Symbol('", f"{text} or Symbol('")
        model.update(json.loads(text))

    attacks = (
        pickled,
        lambda e: e.update({"data/aotinductor/model/x.so": b"elf"}),
        lambda e: model_json(e, lambda m: first_node(m).update(target="torch.hub.load")),
        lambda e: model_json(e, lambda m: first_node(m).update(target="torch.ops.aten.from_file")),
        lambda e: model_json(e, expression),
    )
    for attack in attacks:
        file.write_bytes(changed(whole, attack))
        with pytest.raises(InputError, match=r"refused: "):
            read_embedder(file, None, None, Pixels(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1)))
    assert not mark.exists()


class Saves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "anywhere")
        return x


class Maps(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("anywhere", True, 4)


@pytest.mark.parametrize("module", [Saves, Maps])
def test_torchscript_that_touches_files_is_refused(module, tmp_path):
    torch.jit.script(module()).save(tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"refused: it calls torch.(save|from_file)"):
        adopt(tmp_path / "net.pt", tmp_path / "model")


def test_pickled_example_inputs_are_left_out(tmp_path):
    file, mark = tmp_path / "net.pt2", tmp_path / "ran"
    save_exported(network(), file)

    def change(entries):
        entries["data/sample_inputs/model.pt"] = pickle.dumps(Touch(mark))

    program = load_program("exported", changed(file.read_bytes(), change), "net.pt2")
    program(torch.randn(2, 3, *SIZE))
    assert not mark.exists()


def test_a_classifier_comes_with_the_names_of_its_rows(tmp_path):
    save_script(network(), tmp_path / "net.pt")
    weight = torch.randn(5, 8)
    save_file({"weight": weight}, tmp_path / "c.safetensors")
    names = [f"person {i} é" for i in range(5)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    files = {"classifier": tmp_path / "c.safetensors", "names": tmp_path / "names.txt"}
    model = adopt(tmp_path / "net.pt", tmp_path / "model", **files)
    assert (model.rows, model.names()) == (5, names)
    assert model.classifier.margin.kind == "cosface"
    frozen = model.frozen_rows(Ranks()).weight
    torch.testing.assert_close(frozen, torch.nn.functional.normalize(weight))
    (tmp_path / "names.txt").write_text("a\nb\nb\nc\nd\n")
    with pytest.raises(InputError, match="5 lines, 4 different, for 5 rows"):
        adopt(tmp_path / "net.pt", tmp_path / "other", **files)
    with pytest.raises(InputError, match="go together"):
        adopt(tmp_path / "net.pt", tmp_path / "other", classifier=tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "112"}, "--size '112'"),
        ({"scale": ("0.5", "0.5")}, "add --unit"),
        ({"scale": ("127.5", "127.5"), "unit": True}, "leave out --unit"),
        ({"scale": ("1,2", "1")}, "one number or three"),
        ({"scale": ("0", "0")}, "one number or three"),
        ({"margin": "kind=cosplay"}, "--margin"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        adopt(tmp_path / "net.pt", tmp_path / "model", **options)
