"""CIFAR-100's two layouts and ImageNet's, laid out by hand."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.settings import InputError
from data_shards.sources.cifar import CifarSettings, read_cifar
from data_shards.sources.imagenet import ImagenetSettings, read_imagenet
from tests.conftest import jpeg

FINE = ["apple", "bear", "crab"]
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
LABELS = [2, 0, 1, 1, 0]


def lay_binary(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    (root / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
    for part, chosen in {"train": [0, 1, 2], "test": [3, 4]}.items():
        records = [bytes([9, LABELS[n]]) + PIXELS[n].tobytes() for n in chosen]
        (root / f"{part}.bin").write_bytes(b"".join(records))
    return root


def lay_python(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": FINE}, 2))
    for part, chosen in {"train": [0, 1, 2], "test": [3, 4]}.items():
        value = {
            "fine_labels": [LABELS[n] for n in chosen],
            "data": PIXELS[chosen].reshape(-1, 3072),
        }
        (root / part).write_bytes(pickle.dumps(value, 2))
    return root


@pytest.mark.parametrize("lay", [lay_binary, lay_python])
def test_cifar_pixels_and_labels_are_read_from_both_layouts(tmp_path, lay):
    images = list(read_cifar(CifarSettings(path=lay(tmp_path / "c"))))
    assert [i.identity for i in images] == [f"cifar100/{FINE[label]}" for label in LABELS]
    assert [i.role for i in images] == ["train"] * 3 + ["query"] * 2
    assert [i.key for i in images][2:4] == ["cifar100/train/00002", "cifar100/test/00000"]
    for image, pixels in zip(images, PIXELS, strict=True):
        with Image.open(io.BytesIO(image.image)) as opened:
            assert (np.asarray(opened) == pixels.transpose(1, 2, 0)).all()


def test_cifar_is_found_in_the_folder_that_the_archive_makes(tmp_path):
    lay_binary(tmp_path / "cifar-100-binary")
    assert len(list(read_cifar(CifarSettings(path=tmp_path)))) == 5


def test_damaged_cifar_files_are_named(tmp_path):
    root = lay_binary(tmp_path / "b")
    path = root / "train.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train\.bin has 9221 bytes"):
        list(read_cifar(CifarSettings(path=root)))
    path.write_bytes(bytes([0, 3]) + bytes(3072))
    with pytest.raises(InputError, match=r"train\.bin has labels from 3 to 3, but there are 3"):
        list(read_cifar(CifarSettings(path=root)))


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {"data": np.zeros((1, 3072), np.uint8)},
        {"fine_labels": [0], "data": np.zeros((1, 3072), np.int8)},
        {"fine_labels": [0], "data": np.zeros((1, 3071), np.uint8)},
        {"fine_labels": [0, 1], "data": np.zeros((1, 3072), np.uint8)},
        {"fine_labels": ["0"], "data": np.zeros((1, 3072), np.uint8)},
        {"fine_labels": [-1], "data": np.zeros((1, 3072), np.uint8)},
    ],
)
def test_a_cifar_pickle_of_another_kind_is_named(tmp_path, value):
    root = lay_python(tmp_path / "p")
    (root / "test").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=r"p/test (has|holds|was not read)"):
        list(read_cifar(CifarSettings(path=root)))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.integers(0, 7))
def test_a_flipped_bit_in_a_cifar_pickle_is_an_input_error_or_a_label_that_exists(
    tmp_path, place, bit
):
    root = lay_python(tmp_path / "p")
    content = bytearray((root / "test").read_bytes())
    content[place % min(len(content), 300) if place % 2 else -(place % 300) - 1] ^= 1 << bit
    (root / "test").write_bytes(content)
    try:
        images = list(read_cifar(CifarSettings(path=root)))
    except InputError:
        return
    assert {i.identity.removeprefix("cifar100/") for i in images} <= set(FINE)


def lay_imagenet(root: Path, flat: bool) -> Path:
    for number, name in enumerate(["n02", "n01"]):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / f"{name}_1.JPEG").write_bytes(jpeg(number, 0))
    (root / "val").mkdir()
    for number, name in enumerate(["n01", "n02"]):
        folder = root / "val" if flat else root / "val" / name
        folder.mkdir(exist_ok=True)
        (folder / f"ILSVRC2012_val_0000000{number}.JPEG").write_bytes(jpeg(number, 1))
    if flat:
        (root / "LOC_val_solution.csv").write_text(
            "ImageId,PredictionString\nILSVRC2012_val_00000001,n02 1 2 3 4\n"
            "ILSVRC2012_val_00000000,n01 85 1 499 272 n01 5 6 7 8 \n"
        )
    return root


@pytest.mark.parametrize("flat", [False, True])
def test_imagenet_is_read_with_its_validation_images_in_folders_or_flat(tmp_path, flat):
    root = lay_imagenet(tmp_path, flat)
    images = list(read_imagenet(ImagenetSettings(path=root)))
    assert [(i.identity, i.role) for i in images] == [
        ("imagenet/n01", "train"),
        ("imagenet/n02", "train"),
        ("imagenet/n01", "query"),
        ("imagenet/n02", "query"),
    ]
    assert images[0].key == "imagenet/train/n01/n01_1.JPEG"
    assert images[0].image == jpeg(1, 0)


def test_a_validation_image_without_a_known_class_is_named(tmp_path):
    root = lay_imagenet(tmp_path, True)
    extra = root / "val" / "ILSVRC2012_val_00000009.JPEG"
    extra.write_bytes(jpeg(0, 0))
    with pytest.raises(InputError, match=r"does not say the class of .*00000009"):
        list(read_imagenet(ImagenetSettings(path=root)))
    listed = root / "LOC_val_solution.csv"
    listed.write_text(listed.read_text() + "ILSVRC2012_val_00000009,n77 1 2 3 4\n")
    with pytest.raises(InputError, match="is of class 'n77'"):
        list(read_imagenet(ImagenetSettings(path=root)))
    listed.unlink()
    with pytest.raises(InputError, match="outside of class folders"):
        list(read_imagenet(ImagenetSettings(path=root)))
