"""Written datasets: readable by others, and damage of any kind is noticed."""

import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.storage.dataset import SampleError, ShardDataset
from data_shards.writing.writer import write_dataset
from tests.conftest import jpeg, source


@pytest.fixture
def copy(small_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_folder, tmp_path / "copy"))


def test_every_sample_comes_back_with_its_identity_and_camera(small):
    cameras = small.manifest["cameras"]
    for sample, image in enumerate(source(60, 4)):
        assert small.image(sample) == image.image
        assert small.names[small.identity[sample]] == image.identity
        assert cameras[small.camera[sample]] == image.camera


def test_indexes_equal_what_dalis_wds2idx_writes(small_folder, tmp_path):
    for tar in sorted(small_folder.glob("*.tar")):
        theirs = tmp_path / "theirs.idx"
        command = [sys.executable, "-m", "wds2idx", str(tar), str(theirs)]
        subprocess.run(command, check=True, capture_output=True)
        assert theirs.read_bytes() == tar.with_suffix(".idx").read_bytes()


def test_the_webdataset_library_reads_the_shards(small_folder, small):
    urls = [str(small_folder / name) for name in small.manifest["shards"]]
    read = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(read) == len(small)
    for sample, found in enumerate(read):
        assert found["jpg"] == small.image(sample)
        assert int(found["cls"]) == small.identity[sample]


def test_writing_is_reproducible(tmp_path):
    manifests = [write_dataset(source(5, 2), tmp_path / name, {}, shard_samples=4) for name in "ab"]
    assert manifests[0]["files"] == manifests[1]["files"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_noticed(copy, small_folder, data):
    """A flipped byte of an image is a SampleError; anywhere else, verify names the file."""
    manifest = json.loads((small_folder / "manifest.json").read_text())
    name = data.draw(st.sampled_from(sorted(manifest["files"])))
    content = bytearray((small_folder / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    (copy / name).write_bytes(content)
    try:
        with pytest.raises(InputError, match=name):
            ShardDataset.open(copy).verify()
        if name.endswith(".tar"):
            dataset = ShardDataset.open(copy)
            shard = manifest["shards"].index(name)
            hit = (dataset.shard == shard) & (dataset.offset <= at)
            hit &= at < dataset.offset + dataset.size
            for sample in np.flatnonzero(hit):
                with pytest.raises(SampleError, match=name):
                    dataset.image(int(sample))
    finally:
        (copy / name).write_bytes((small_folder / name).read_bytes())


@pytest.mark.parametrize("name", ["shard-00002.tar", "samples.parquet", "identities.parquet"])
def test_a_missing_or_truncated_file_is_named_with_the_remedy(copy, name):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-7])
    with pytest.raises(InputError, match=rf"{name}.*truncated.*restore"):
        ShardDataset.open(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=rf"{name} is missing: restore"):
        ShardDataset.open(copy)


def test_a_changed_samples_table_is_noticed_when_it_is_opened(copy):
    """Not only by verify: every rank reads the table, and it decides who is who."""
    table = copy / "samples.parquet"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    with pytest.raises(InputError, match=r"samples\.parquet was changed"):
        ShardDataset.open(copy)


def test_images_stay_as_they_were_checked_when_a_shard_changes(copy):
    dataset = ShardDataset.open(copy)
    (image,) = dataset.images(np.array([7]))
    at = int(dataset.offset[7])
    with (copy / dataset.manifest["shards"][dataset.shard[7]]).open("r+b") as shard:
        shard.seek(at)
        shard.write(bytes(64))
    assert zlib.crc32(image) == dataset.crc32[7]
    assert dataset.images(np.array([7])) == [None]


def test_verifying_reports_the_bytes_done(small):
    heard = []
    small.verify(heard.append)
    sizes = [facts["bytes"] for facts in small.manifest["files"].values()]
    assert heard == np.cumsum(sizes).tolist()


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no dataset"):
        ShardDataset.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        ShardDataset.open(tmp_path)


def test_another_version_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(InputError, match="version 99"):
        ShardDataset.open(copy)


def bad_images():
    good = jpeg(0, 0)
    return {
        "empty": b"",
        "text": b"not an image",
        "truncated in the header": good[: len(good) // 2],
        "truncated in the picture": good[:-12],
    }


@pytest.mark.parametrize("kind", sorted(bad_images()))
def test_what_cannot_be_decoded_is_refused_and_listed(tmp_path, kind):
    bad = SourceImage(bad_images()[kind], "id-bad", "camera-0", "the-bad-one")
    images = [*source(3, 2), bad]
    with pytest.raises(InputError, match=r"1 of 7 images.*refused\.jsonl"):
        write_dataset(images, tmp_path / "strict", {})
    assert not (tmp_path / "strict" / "manifest.json").exists()
    manifest = write_dataset(images, tmp_path / "lenient", {}, max_refused=0.2)
    assert (manifest["samples"], manifest["refused"]) == (6, 1)
    (refused,) = (tmp_path / "lenient" / "refused.jsonl").read_text().splitlines()
    assert json.loads(refused)["key"] == "the-bad-one"


def test_a_dataset_is_not_overwritten(small_folder):
    with pytest.raises(InputError, match="already holds a dataset"):
        write_dataset(source(1, 1), small_folder, {})


def test_tar_members_are_named_as_webdataset_wants(small_folder):
    with tarfile.open(small_folder / "shard-00000.tar") as tar:
        names = [m.name for m in tar][:3]
    assert [n.split(".", 1)[1] for n in names] == ["cls", "jpg", "json"]
    assert len({n.split(".")[0] for n in names}) == 1


def test_extra_tables_name_samples_by_number(tmp_path):
    bad = SourceImage(b"", "id-bad", "camera-0", "bad")
    images = [*source(2, 1), bad, *source(3, 1)[2:]]
    pairs = pa.table({"left_key": ["2_0", "0_0"], "same": [True, False], "right_key": ["bad", "?"]})
    manifest = write_dataset(images, tmp_path / "d", {}, max_refused=0.5, tables={"pairs": pairs})
    assert manifest["tables"] == ["pairs"] and "pairs.parquet" in manifest["files"]
    table = ShardDataset.open(tmp_path / "d").table("pairs")
    expected = {"left": [2, 0], "same": [True, False], "right": [-1, -1]}
    assert table.to_pydict() == expected and table["left"].type == pa.int64()


def test_a_table_that_is_not_there_or_was_changed_is_named(tmp_path):
    dataset_of = {"search": pa.table({"template": [1, 2]})}
    write_dataset(source(1, 1), tmp_path / "d", {}, tables=dataset_of)
    dataset = ShardDataset.open(tmp_path / "d")
    with pytest.raises(InputError, match=r"no table 'pairs'; it has \['search'\]"):
        dataset.table("pairs")
    path = tmp_path / "d" / "search.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"search\.parquet was changed"):
        dataset.table("search")
