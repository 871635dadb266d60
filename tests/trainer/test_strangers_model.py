"""Models, galleries and arrays that a stranger wrote, with hashes that are right."""

import contextlib
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save as save_arrays
from safetensors.torch import load, save

from data_shards.files import sha256
from data_shards.settings import InputError
from data_shards.storage.neighbours import TeacherCache, teacher_file, write_teacher_file
from trainer.arrays import read_arrays, read_embeddings, write_embeddings
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.checkpoint import DamagedError, Folder
from trainer.checkpoint.inspection import inspect
from trainer.gallery import INDEX, Gallery, Part, stored, upgraded
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows
from trainer.model import Model, save_model
from untrusted.safetensors import read_header


@pytest.fixture
def model(tmp_path):
    folder, ranks = tmp_path / "model", Ranks()
    settings = EmbedderSettings(width=4, dimension=8)
    rows = ShardedRows.new(0, 6, 8, 0, ranks)
    classifier = MarginLoss(ClassifierSettings(), 0, torch.device("cpu"))
    names = [f"id-{row}" for row in range(6)]
    net = build_embedder(settings)
    save_model(folder, settings, (16, 16), classifier, net, [rows], names, ranks)
    return folder


def put(folder, name, content):
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def read_all(folder):
    opened = Model.open(folder)
    opened.names()
    opened.running()
    opened.embedder()
    opened.sharded_rows(Ranks())


def refused(folder):
    with pytest.raises(InputError) as error:
        read_all(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    with contextlib.suppress(InputError):
        inspect(str(folder))


def test_a_good_one_is_read(model):
    read_all(model)
    inspect(str(model))


CARDS = {
    "no embedder": lambda c: c.pop("embedder"),
    "no version": lambda c: c.pop("version"),
    "version text": lambda c: c.update(version="1"),
    "kind of another type": lambda c: c.update(kind=[]),
    "embedder a list": lambda c: c.update(embedder=[]),
    "embedder wide": lambda c: c["embedder"].update(width=10**6),
    "embedder deep": lambda c: c["embedder"].update(depth=10**9),
    "embedder long": lambda c: c["embedder"].update(dimension=10**9),
    "another architecture": lambda c: c["embedder"].update(architecture="resnet152"),
    "rows -1": lambda c: c.update(rows=-1),
    "rows 10^9": lambda c: c.update(rows=10**9),
    "rows 10^15": lambda c: c.update(rows=10**15),
    "rows text": lambda c: c.update(rows="x"),
    "size of one": lambda c: c.update(image_size=[16]),
    "size 10^9": lambda c: c.update(image_size=[10**9, 10**9]),
    "classifier text": lambda c: c.update(classifier="x"),
}


@pytest.mark.reliability(8, "a model's card that promises what its files cannot hold is refused")
@pytest.mark.parametrize("case", CARDS)
def test_a_card_is_checked_before_it_is_believed(model, case):
    card = json.loads((model / "card.json").read_text())
    CARDS[case](card)
    put(model, "card.json", json.dumps(card).encode())
    refused(model)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 10**5, b"\xff", b"9" * 5000])
@pytest.mark.parametrize("name", ["card.json", "manifest.json"])
def test_json_that_is_none(model, name, content):
    if name == "manifest.json":
        (model / name).write_bytes(content)
    else:
        put(model, name, content)
    refused(model)


@pytest.mark.reliability(8, "a model's manifest names plain names of regular files in its folder")
@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "/dev/zero", "a/b", ".x", "\x1b[2J"])
def test_a_manifest_names_files_of_its_folder(model, name):
    (model.parent / "outside").write_bytes(b"x")
    manifest = json.loads((model / "manifest.json").read_text())
    manifest[name] = hashlib.sha256(b"x").hexdigest()
    (model / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DamagedError):
        Model.open(model)
    with pytest.raises(DamagedError):
        inspect(str(model))


@pytest.mark.parametrize("kind", ["fifo", "device", "outside"])
def test_a_file_that_is_no_regular_file_of_the_folder(model, kind):
    path = model / "embedder.safetensors"
    path.rename(model.parent / "outside")
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else model.parent / "outside")
    with pytest.raises(DamagedError, match="embedder"):
        Model.open(model)


ROWS = {
    "backwards": lambda t: t.update(ids=t["ids"].flip(0)),
    "twice": lambda t: t.update(ids=torch.zeros_like(t["ids"])),
    "ids of floats": lambda t: t.update(ids=t["ids"].float()),
    "ids of two dimensions": lambda t: t.update(ids=t["ids"][:, None]),
    "no ids": lambda t: t.pop("ids"),
    "no weight": lambda t: t.pop("weight"),
    "fewer weights": lambda t: t.update(weight=t["weight"][:2].clone()),
    "other ids": lambda t: t.update(ids=t["ids"] + 1),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows_are_checked(model, case):
    (path,) = model.glob("rows-*")
    tensors = load(path.read_bytes())
    ROWS[case](tensors)
    put(model, path.name, save(tensors))
    refused(model)


@pytest.mark.parametrize(
    "ends",
    [
        [-1, 2, 3, 4, 5, 6],
        [9, 2, 3, 4, 5, 6],
        [1, 2, 3, 4, 5, 10**9],
        [10**12] * 6,
        [0.5] * 6,
        [[1]],
    ],
)
def test_names_lie_in_their_text(model, ends):
    text = torch.frombuffer(bytearray(b"abcdefg"), dtype=torch.uint8)
    put(model, "names.safetensors", save({"utf8": text, "ends": torch.tensor(ends)}))
    refused(model)


def header(value, data=b""):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


HEADERS = {
    "empty": b"",
    "length 2^63": (2**63).to_bytes(8, "little") + b"{}",
    "length 2^32": (2**32).to_bytes(8, "little") + b"{}",
    "list": header([]),
    "deep": header(b"[" * 10**5),
    "type": header(tensor("F4"), b"abcd"),
    "type a list": header(tensor([]), b"abcd"),
    "shape -1": header(tensor(shape=(-1, -1)), b"abcd"),
    "shape large": header(tensor(shape=(2**40, 2**40)), b"abcd"),
    "shape text": header(tensor(shape=("x",)), b"abcd"),
    "shape true": header(tensor(shape=(True,)), b"abcd"),
    "offsets back": header(tensor(offsets=(4, 0)), b"abcd"),
    "offsets outside": header(tensor(offsets=(2**40, 2**40 + 4)), b"abcd"),
    "a gap": header(tensor(offsets=(4, 8)), b"abcdefgh"),
    "short": header(tensor(), b"abc"),
    "long": header(tensor(), b"abcde"),
    "twice": header(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
    "overlap": header(tensor() | {"b": tensor()["a"]}, b"abcd"),
    "metadata": header({"__metadata__": {"model": 1}}),
}


@pytest.mark.reliability(8, "what a safetensors header says must fit its file, mapped or read")
@pytest.mark.parametrize("case", HEADERS)
def test_a_header_must_fit_its_file(model, tmp_path, case):
    put(model, "embedder.safetensors", HEADERS[case])
    refused(model)
    path = teacher_file(tmp_path, 0, "plain")
    path.write_bytes(HEADERS[case])
    with pytest.raises(InputError, match="damaged"):
        TeacherCache(tmp_path, 1, ("plain",), "m")
    with pytest.raises(InputError, match="damaged"):
        read_arrays(path)


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.tuples(
            st.sampled_from(["f4", "f8", "i8", "i4", "u1", "?", "f2"]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=4,
    )
)
def test_every_file_that_the_library_writes_is_read(tensors):
    arrays = {name: np.ones(shape, kind) for name, (kind, shape) in tensors.items()}
    content = save_arrays(arrays, metadata={"model": "m"})
    found, metadata = read_header(io.BytesIO(content), len(content))
    assert metadata == {"model": "m"} and found.keys() == arrays.keys()
    for name, array in arrays.items():
        start = found[name].start
        assert content[start : start + array.nbytes] == array.tobytes()
        assert found[name].shape == array.shape


@pytest.mark.parametrize(
    "arrays",
    [
        {"samples": np.arange(3), "embeddings": np.ones((2, 4), np.float32)},
        {"samples": np.arange(2)[::-1].copy(), "embeddings": np.ones((2, 4), np.float32)},
        {"samples": np.array([-1, 0]), "embeddings": np.ones((2, 4), np.float32)},
        {"samples": np.arange(2), "embeddings": np.ones(2, np.float32)},
        {"samples": np.arange(2)},
        {"samples": np.arange(2.0), "embeddings": np.ones((2, 4), np.float32)},
    ],
)
def test_vectors_of_samples_are_checked(tmp_path, arrays):
    (tmp_path / "v").write_bytes(save_arrays(arrays, metadata={"model": "m"}))
    with pytest.raises(InputError, match="holds no vectors"):
        read_embeddings(tmp_path / "v", "m")


def test_answers_of_several_lengths_are_no_teachers(tmp_path):
    arrays = {"samples": np.arange(3), "ids": np.zeros((2, 4), np.int64)}
    write_teacher_file(teacher_file(tmp_path, 0, "plain"), arrays, "m")
    with pytest.raises(InputError, match="lengths"):
        TeacherCache(tmp_path, 1, ("plain",), "m")


@pytest.fixture
def gallery(tmp_path):
    part = stored(tmp_path, 0, "m", 0, np.arange(3), np.ones((3, 4), np.float32))
    Gallery(tmp_path, "d", {"m": 4}, (part,)).save()
    return tmp_path


INDEXES = {
    "name ../": lambda v: v["parts"][0].update(name="../x"),
    "name absolute": lambda v: v["parts"][0].update(name="/dev/zero"),
    "sha256": lambda v: v["parts"][0].update(sha256="x"),
    "rows": lambda v: v["parts"][0].update(rows=5),
    "rows -1": lambda v: v["parts"][0].update(rows=-1),
    "model": lambda v: v["parts"][0].update(model="other"),
    "part null": lambda v: v.update(parts=[None]),
    "part twice": lambda v: v["parts"].append(v["parts"][0]),
    "dimension": lambda v: v.update(dimensions={"m": 5}),
    "dimensions text": lambda v: v.update(dimensions="m"),
    "no dataset": lambda v: v.pop("dataset"),
    "more": lambda v: v.update(folder="/"),
    "generation": lambda v: v.update(generation="x"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_the_index_of_a_gallery_is_checked(gallery, case):
    values = json.loads((gallery / INDEX).read_text())
    INDEXES[case](values)
    (gallery / INDEX).write_text(json.dumps(values))
    with pytest.raises(InputError) as error:
        list(Gallery.open(gallery).vectors("m", 3))
    assert "\n" not in str(error.value)


@pytest.mark.reliability(8, "the models that a gallery names are no paths: files are named by them")
def test_an_upgrade_writes_nothing_outside_of_the_gallery(tmp_path):
    folder, model = tmp_path / "gallery", "x/../../outside"
    (folder / "shard-00000-x").mkdir(parents=True)
    write_embeddings(folder / "a", np.arange(3), np.ones((3, 4), np.float32), model)
    part = Part("a", 0, model, 3, sha256(folder / "a"))
    Gallery(folder, "d", {model: 4}, (part,)).save()
    fresh = [(0, np.arange(1), np.ones((1, 4), np.float32))]
    with pytest.raises(InputError, match="damaged"):
        upgraded(Gallery.open(folder), "new", 4, fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["gallery"]


def test_vectors_of_samples_that_are_not_there(gallery):
    assert len(list(Gallery.open(gallery).vectors("m", 3))) == 1
    with pytest.raises(InputError, match="not there"):
        list(Gallery.open(gallery).vectors("m", 2))
    (part,) = Gallery.open(gallery).parts
    write_embeddings(gallery / part.name, np.arange(2), np.ones((2, 4), np.float32), "m")
    assert sha256(gallery / part.name) != part.sha256
    with pytest.raises(InputError, match="was changed"):
        list(Gallery.open(gallery).vectors("m", 3))


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 10**5, b"\xff", b'{"version": 1}'])
def test_a_gallery_index_that_is_none(gallery, content):
    (gallery / INDEX).write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        Gallery.open(gallery)


def test_a_folder_is_never_read_as_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "memory::x").mkdir()
    assert str(Folder.at(Path("memory::x"))).endswith("/memory::x")
