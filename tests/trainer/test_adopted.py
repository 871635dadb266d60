"""Models from outside: what they give equals what they gave, and opening them runs nothing."""

import hashlib
import io
import json
import zipfile

import pytest
import torch
import torchvision
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import save, save_file
from torch import nn
from torchvision.transforms.v2.functional import resize

from data_shards.settings import InputError
from launch.models.adopt import Outside, run_adopt
from trainer.adopted import AdoptedSettings, Pixels, build_adopted
from trainer.heads.collectives import Ranks
from trainer.model import Model

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
    names = {"input_names": ["pixels"], "output_names": ["vectors"]}
    axes = {"pixels": {0: "b"}, "vectors": {0: "b"}} if free else None
    given = (torch.randn(batch, 3, *SIZE),)
    torch.onnx.export(net, given, path, dynamo=False, dynamic_axes=axes, **names)


FORMATS = {"pt": save_script, "pt2": save_exported, "onnx": save_onnx}


def adopt(file, out, size="16x20", scale=("127.5", "127.5"), **given):
    files = {"architecture": None, "layer": None, "classifier": None, "names": None, **given}
    margin = files.pop("margin", "kind=cosface,scale=32")
    unit, bgr, trust = (files.pop(name, False) for name in ("unit", "bgr", "trust"))
    outside, quiet = Outside(file, **files), Console(quiet=True)
    run_adopt(outside, out, size, scale, unit, bgr, margin, quiet, trust)
    return Model.open(out)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.reliability(
    5, "a program is run once, at `adopt --trust`, and kept as an ONNX graph of the same output"
)
def test_an_adopted_program_gives_what_the_original_gives(suffix, tmp_path):
    net, file = network(), tmp_path / f"net.{suffix}"
    FORMATS[suffix](net, file)
    scale = "0.4,0.5,0.6", "0.2,0.25,0.3"
    model = adopt(file, tmp_path / "model", scale=scale, unit=True, bgr=True, trust=True)
    mean, std = (torch.tensor([float(v) for v in t.split(",")]).view(3, 1, 1) for t in scale)
    given = images(5)
    pixels = (given.double()[:, [2, 1, 0]] / 255 - mean) / std
    with torch.inference_mode():
        expected = net(pixels.float())
        found = model.embedder()(given)
    assert (model.settings.dimension, model.rows, model.adopted) == (8, 0, True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_a_prefix_that_all_weights_share_is_left_out(prefix, tmp_path):
    net = torchvision.models.shufflenet_v2_x0_5(num_classes=7).eval()
    weights = {prefix + name: tensor for name, tensor in net.state_dict().items()}
    save_file(weights, tmp_path / "w.safetensors")
    given = {"architecture": "shufflenet_v2_x0_5", "layer": "none"}
    model = adopt(tmp_path / "w.safetensors", tmp_path / "model", "32x32", ("0", "255"), **given)
    pixels = images(3, (32, 32))
    with torch.inference_mode():
        torch.testing.assert_close(model.embedder()(pixels), net(pixels / 255))


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
    save_onnx(network(), tmp_path / "net.onnx")
    embedder = adopt(tmp_path / "net.onnx", tmp_path / "model").embedder()
    given = images(2, (40, 33))
    resized = resize(given.float(), list(SIZE), antialias=True)
    torch.testing.assert_close(embedder.prepare(given), (resized - 127.5) / 127.5)


def test_a_graph_of_a_fixed_batch_is_run_in_that_batch(tmp_path):
    net, file = network(), tmp_path / "net.onnx"
    save_onnx(net, file, batch=4, free=False)
    model = adopt(file, tmp_path / "model", scale=("0", "1"))
    given = images(7)
    with torch.inference_mode():
        expected, found = net(given.float()), model.embedder()(given)
    assert model.settings.batch == 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_a_network_in_training_mode_is_refused(tmp_path):
    torch.jit.trace(network().train(), torch.randn(3, 3, *SIZE)).save(tmp_path / "net.pt")
    # traced code keeps batch normalisation in the mode it was traced in
    with pytest.raises(InputError, match=r"depends on the other images|gives other vectors"):
        adopt(tmp_path / "net.pt", tmp_path / "model", trust=True)


def test_pickles_and_what_else_cannot_be_read_are_refused(tmp_path):
    net = network()
    torch.save(net, tmp_path / "pickled.pt")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    (tmp_path / "torn.onnx").write_bytes(b"torn")
    (tmp_path / "torn.pt2").write_bytes(b"torn")
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    for name, architecture, words in (
        ("pickled.pt", None, "is a pickled file"),
        ("w.pth", None, "save the weights as .safetensors"),
        ("torn.onnx", None, "cannot be read"),
        ("torn.pt2", None, "cannot be read"),
        ("missing.pt", None, "does not exist"),
        ("w.safetensors", None, "by --architecture"),
        ("w.safetensors", "resnet19", "did you mean resnet18"),
        ("w.safetensors", "resnet18", "not the weights of resnet18"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            adopt(tmp_path / name, tmp_path / "model", architecture=architecture, trust=True)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


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


class Named(nn.Module):
    """Flattens; its input's name is no operator's."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)


@pytest.fixture
def hostile(tmp_path):
    """An archive of torch.export that runs a command when it is read: ``env > RAN``.

    The name of the graph's input becomes a line of Python source.
    """
    file = tmp_path / "net.pt2"
    save_exported(Named(), file)
    shell = f"x=__import__('os').system('env > {tmp_path}/RAN')"

    def rename(model):
        text = json.dumps(model).replace('"pixels"', json.dumps(shell))
        model.update(json.loads(text))

    file.write_bytes(changed(file.read_bytes(), lambda entries: model_json(entries, rename)))
    return file


class Files(nn.Module):
    """Reads a file and writes another by operators that torchvision registers."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.ops.image.write_file(self.path, torch.ops.image.read_file("/etc/hostname"))
        return x.flatten(1)[:, :8] + 0.0


@pytest.mark.reliability(5, "a program is not run by `adopt` without --trust")
def test_no_program_is_run_unless_the_user_trusts_it(hostile, tmp_path):
    torch.jit.script(Files(str(tmp_path / "RAN"))).save(tmp_path / "net.pt")
    for name in ("net.pt", "net.pt2"):
        with pytest.raises(InputError, match="is a program, and reading it runs it"):
            adopt(tmp_path / name, tmp_path / "model")
    assert not (tmp_path / "RAN").exists()


def test_a_trusted_program_runs_without_the_secrets_of_the_environment(
    hostile, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(InputError):
        adopt(hostile, tmp_path / "model", trust=True)
    seen = (tmp_path / "RAN").read_text(encoding="utf-8")
    assert "PATH=" in seen and "hunter2" not in seen


@pytest.mark.reliability(5, "a model folder that holds a program is refused, and nothing is run")
def test_opening_a_strangers_model_folder_runs_nothing(hostile, tmp_path):
    save_onnx(network(), tmp_path / "net.onnx")
    folder = adopt(tmp_path / "net.onnx", tmp_path / "model").folder
    program = torch.frombuffer(bytearray(hostile.read_bytes()), dtype=torch.uint8)
    forge(folder, "embedder.safetensors", save({"graph": program}))
    with pytest.raises(InputError, match="no ONNX file"):
        Model.open(folder).embedder()
    card = json.loads((folder / "card.json").read_bytes())
    for source in ("exported", "torchscript"):
        card["embedder"]["source"] = source
        forge(folder, "card.json", json.dumps(card).encode())
        with pytest.raises(InputError, match="adopt the original file again, with --trust"):
            Model.open(folder)
    assert not (tmp_path / "RAN").exists()


def forge(folder, name, content):
    """Replaces a file of a model folder, with its hash in the manifest."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest[name] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.reliability(
    5, "a model's card cannot ask for images, batches or layers that take all memory or are not"
)
@pytest.mark.parametrize(
    "change",
    [
        {"pixels": {"size": [1 << 20, 1 << 20]}},
        {"pixels": {"size": [0, 16]}},
        {"pixels": {"std": [0, 1, 1]}},
        {"pixels": {"mean": [float("inf"), 0, 0]}},
        {"batch": 1 << 40},
        {"dimension": -1},
    ],
)
def test_a_forged_card_is_not_believed(change, tmp_path):
    save_onnx(network(), tmp_path / "net.onnx")
    settings = adopt(tmp_path / "net.onnx", tmp_path / "model").settings.model_dump()
    pixels = settings["pixels"] | change.pop("pixels", {})
    with pytest.raises(ValidationError):
        AdoptedSettings.model_validate({**settings, **change, "pixels": pixels})


def test_vectors_of_another_length_than_the_card_says_are_refused(tmp_path):
    save_onnx(network(), tmp_path / "net.onnx")
    folder = adopt(tmp_path / "net.onnx", tmp_path / "model").folder
    card = json.loads((folder / "card.json").read_bytes())
    card["embedder"]["dimension"] = 1 << 40
    forge(folder, "card.json", json.dumps(card).encode())
    with pytest.raises(InputError, match="gives vectors of 8 numbers, and its card says"):
        Model.open(folder).embedder()(images(2))


@pytest.mark.parametrize(
    ("layer", "weights"),
    [
        ("forward", {}),
        ("", {}),
        ("fc.weight", {}),
        (None, {"fc.weight": torch.empty(1 << 40, 0)}),
        (None, {"fc.weight": torch.tensor(1.0)}),
    ],
)
def test_forged_weights_are_refused_before_memory_is_taken_for_them(layer, weights):
    pixels = Pixels(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    settings = AdoptedSettings(
        source="torchvision", architecture="shufflenet_v2_x0_5", layer=layer, pixels=pixels
    )
    with pytest.raises(InputError, match=r"--layer: give a layer|not the weights of"):
        build_adopted(settings, weights)


def test_a_classifier_comes_with_the_names_of_its_rows(tmp_path):
    save_onnx(network(), tmp_path / "net.onnx")
    weight = torch.randn(5, 8)
    save_file({"weight": weight}, tmp_path / "c.safetensors")
    names = [f"person {i} é" for i in range(5)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    files = {"classifier": tmp_path / "c.safetensors", "names": tmp_path / "names.txt"}
    model = adopt(tmp_path / "net.onnx", tmp_path / "model", **files)
    assert (model.rows, model.names()) == (5, names)
    assert model.classifier.margin.kind == "cosface"
    frozen = model.frozen_rows(Ranks()).weight
    torch.testing.assert_close(frozen, torch.nn.functional.normalize(weight))
    (tmp_path / "names.txt").write_text("a\nb\nb\nc\nd\n")
    with pytest.raises(InputError, match="5 lines, 4 different, for 5 rows"):
        adopt(tmp_path / "net.onnx", tmp_path / "other", **files)
    with pytest.raises(InputError, match="go together"):
        adopt(tmp_path / "net.onnx", tmp_path / "other", classifier=tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": "112"}, "size '112'"),
        ({"scale": ("0.5", "0.5")}, "add --unit"),
        ({"scale": ("127.5", "127.5"), "unit": True}, "leave out --unit"),
        ({"scale": ("1,2", "1")}, "one number or three"),
        ({"scale": ("0", "0")}, "one number or three"),
        ({"margin": "kind=cosplay"}, "--margin"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        adopt(tmp_path / "net.onnx", tmp_path / "model", **options)
