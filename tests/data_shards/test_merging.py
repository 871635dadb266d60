"""Merged datasets: every image as it was, and nobody taken for another."""

import numpy as np
import pyarrow as pa
import pytest

from data_shards.settings import InputError
from data_shards.sources import ROLES, SourceImage
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.merging import merge_datasets, merged_images
from data_shards.writing.writer import write_dataset
from tests.data_shards.test_published_benchmarks import JPEG, faces, persons


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Writes images as a dataset."""

    def build(name: str, images: list[SourceImage]) -> ShardDataset:
        folder = tmp_path_factory.mktemp("merging") / name
        write_dataset(images, folder, {})
        return ShardDataset.open(folder)

    return build


def test_merged_datasets_hold_every_image_as_it_was(make, tmp_path):
    parts = [make("crl-person straight", persons()), make("crl-face straight", faces())]
    merge_datasets(parts, tmp_path / "m")
    merged = ShardDataset.open(tmp_path / "m")
    expected = [*persons(), *faces()]
    assert merged.keys(np.arange(len(merged))) == [i.key for i in expected]
    for sample, i in enumerate(expected):
        assert merged.image(sample) == i.image
        assert merged.names[merged.identity[sample]] == i.identity
        assert merged.manifest["cameras"][merged.camera[sample]] == i.camera
        assert ROLES[merged.role[sample]] == i.role


@pytest.mark.parametrize("start", [0, 1, 22, 23, 24, 30, 31])
def test_a_merge_goes_on_at_any_image(make, start):
    parts = [make("few", faces()[:23]), make("others", faces()[23:31])]
    every = list(merged_images(parts, ["0/", "1/"], 0))
    assert [i.key for i in every[22:24]] == [f"0/{faces()[22].key}", f"1/{faces()[23].key}"]
    assert list(merged_images(parts, ["0/", "1/"], start)) == every[start:]


def test_merged_datasets_may_share_keys_but_no_identity(make, tmp_path):
    def images(*names: str) -> list[SourceImage]:
        return [SourceImage(JPEG, name, "c", f"{key}") for key, name in enumerate(names)]

    mine, yours = make("mine", images("mine/a", "mine/b")), make("yours", images("yours/a"))
    merge_datasets([mine, yours], tmp_path / "m")
    assert ShardDataset.open(tmp_path / "m").keys(np.arange(3)) == ["0/0", "0/1", "1/0"]
    with pytest.raises(InputError, match="both have an identity 'mine/a'"):
        merge_datasets([mine, make("again", images("mine/a"))], tmp_path / "n")
    with_table = tmp_path / "t"
    write_dataset(images("z/a"), with_table, {}, tables={"noisy": pa.table({"sample_key": ["0"]})})
    with pytest.raises(InputError, match=r"has tables \(noisy\) that would be lost"):
        merge_datasets([mine, ShardDataset.open(with_table)], tmp_path / "n")
