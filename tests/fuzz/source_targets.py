"""Readers of image sets that other programs wrote."""

import gzip
import pickle
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np

from data_shards.images import ImageSettings, normalise
from data_shards.sources.cifar import CifarSettings, read_cifar
from data_shards.sources.recordio import RecordIOSettings, read_recordio
from data_shards.sources.verification_bin import VerificationBinSettings, read_verification_bin
from data_shards.sources.webdataset import WebDatasetSettings, read_webdataset
from tests.conftest import jpeg
from tests.data_shards import recordio_bytes
from tests.fuzz.harness import Target

IMAGES = [jpeg(n // 2, n % 2) for n in range(6)]


def recordio(file: str) -> Callable[[Path], Path]:
    """An identity-sorted RecordIO file, of which `file` is damaged."""

    def good(folder: Path) -> Path:
        images = [IMAGES[:2], IMAGES[2:4], IMAGES[4:]]
        recordio_bytes.write(folder, recordio_bytes.identity_sorted(images), 3)
        return folder / file

    return good


def verification(folder: Path) -> Path:
    """Three pairs, one of arrays."""
    images = [*IMAGES[:4], *(np.frombuffer(image, np.uint8) for image in IMAGES[4:])]
    (folder / "x.bin").write_bytes(pickle.dumps((images, [True, False, True]), 4))
    return folder / "x.bin"


def tar(pack: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A WebDataset tar of six samples."""

    def good(folder: Path) -> Path:
        out = BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for number, image in enumerate(IMAGES):
                for extension, content in (("cls", b"%d" % (number // 2)), ("jpg", image)):
                    info = tarfile.TarInfo(f"{number:04d}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, BytesIO(content))
        (folder / "x.tar").write_bytes(pack(out.getvalue()))
        return folder / "x.tar"

    return good


def picture(kind: str) -> Callable[[Path], Path]:
    """A picture of a kind."""

    def good(folder: Path) -> Path:
        from PIL import Image

        Image.open(BytesIO(IMAGES[0])).save(folder / "x", kind)
        return folder / "x"

    return good


def cifar(file: str) -> Callable[[Path], Path]:
    """CIFAR-100's files, of two images each, of which `file` is damaged."""

    def good(folder: Path) -> Path:
        write_cifar(folder)
        return folder / file

    return good


def write_cifar(folder: Path) -> None:
    """The three files."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3072)).astype(np.uint8)
    labels = {b"fine_labels": [3, 4], b"coarse_labels": [0, 1], b"filenames": [b"a", b"b"]}
    for name in ("train", "test"):
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, **labels}, 2))
    names = [f"class {number}" for number in range(5)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))


def drained(items: Iterator[object]) -> None:
    """Reads all of them."""
    for _ in items:
        pass


def read_picture(folder: Path) -> None:
    normalise((folder / "x").read_bytes(), ImageSettings())


SOURCE_TARGETS: dict[str, Target] = {
    name: Target(recordio(file), lambda at: drained(read_recordio(RecordIOSettings(path=at))))
    for name, file in (("rec", "train.rec"), ("idx", "train.idx"), ("property", "property"))
}
SOURCE_TARGETS |= {
    "bin": Target(
        verification,
        lambda at: drained(read_verification_bin(VerificationBinSettings(path=at / "x.bin"))),
    ),
}
SOURCE_TARGETS |= {
    name: Target(cifar(file), lambda at: drained(read_cifar(CifarSettings(path=at))))
    for name, file in (("cifar", "train"), ("cifar-names", "meta"))
}
SOURCE_TARGETS |= {
    name: Target(
        tar(pack),
        lambda at: drained(read_webdataset(WebDatasetSettings(path=str(at / "x.tar")))),
    )
    for name, pack in (("tar", bytes), ("tar.gz", gzip.compress))
}
SOURCE_TARGETS |= {kind.lower(): Target(picture(kind), read_picture) for kind in ("JPEG", "PNG")}
