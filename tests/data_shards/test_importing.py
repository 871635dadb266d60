"""Imports: killed ones go on to the same bytes, whatever the number of processes."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.sources.folder import FolderSettings
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.keys import TakenKeys, key_hash
from data_shards.storage.tars import ShardFile
from data_shards.writing.importing import import_source, source_settings
from data_shards.writing.writer import write_dataset
from tests.conftest import jpeg, source


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two hundred small images of ten identities, some of them broken or of other formats, then a
    few that take long."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(200):
        path = root / f"id-{number // 20}" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"broken" if number % 17 == 3 else jpeg(number, 0))
    large = np.kron(np.random.default_rng(0).integers(0, 255, (30, 40, 3)), np.ones((60, 60, 1)))
    large_file = tmp_path_factory.mktemp("large") / "large.png"
    Image.fromarray(large.astype(np.uint8)).save(large_file)
    for number in range(10):
        path = root / "z" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(large_file)
    return root


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "d"
    import_source("folder", FolderSettings(path=pictures), out, None, 16, 0.1)
    return contents(out)


def command(pictures, out, *options):
    run = [sys.executable, "-m", "launch.cli", "shards", "import", "folder", str(pictures)]
    return [*run, "--out", str(out), "--shard-samples", "16", "--max-refused", "0.1", *options]


def test_a_killed_import_goes_on_to_the_same_bytes(pictures, undisturbed, tmp_path):
    """SIGKILL to the real command after its first shards; its processes go with it."""
    out = tmp_path / "d"
    killed = subprocess.Popen(command(pictures, out, "--processes", "2"))
    while not (out / ".import" / "shard-00002.parquet").exists():
        assert killed.poll() is None, "it ended by itself"
        time.sleep(0.002)
    family = psutil.Process(killed.pid).children(recursive=True)
    killed.kill()
    killed.wait()
    assert len(family) >= 2 and not (out / "manifest.json").exists()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "processes outlive the command"
    records = sorted((out / ".import").glob("shard-*.parquet"))
    tars = [out / record.with_suffix(".tar").name for record in records]
    kept = {tar: tar.stat().st_mtime_ns for tar in tars}
    assert len(kept) >= 3
    again = subprocess.run(command(pictures, out, "--processes", "1"), capture_output=True)
    assert again.returncode == 0, again.stderr
    assert contents(out) == undisturbed
    assert {tar: tar.stat().st_mtime_ns for tar in kept} == kept, "not written again"
    third = subprocess.run(command(pictures, out), capture_output=True, text=True)
    assert third.returncode == 0 and "already" in third.stdout


def test_killed_at_every_write_boundary(tmp_path):
    root = tmp_path / "source"
    for number in range(5):
        (root / str(number % 3)).mkdir(parents=True, exist_ok=True)
        path = root / str(number % 3) / f"{number}.jpg"
        path.write_bytes(b"" if number in (1, 4) else jpeg(number, 0))
    once = tmp_path / "once"
    import_source("folder", FolderSettings(path=root), once, None, 3, 0.5)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # some disks sync slowly
    with tempfile.TemporaryDirectory(dir=memory) as name:
        run = [sys.executable, "-m", "tests.data_shards.import_kills", str(root), name]
        killed = subprocess.run(run, capture_output=True, text=True)
        assert killed.returncode == 0, killed.stderr
        deaths = killed.stdout.splitlines()
        for number, death in enumerate(deaths, start=1):
            assert contents(Path(name) / str(number)) == contents(once), death
    kinds = {death.split()[0] for death in deaths}
    assert kinds == {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def test_the_number_of_processes_does_not_change_a_byte(pictures, undisturbed, tmp_path):
    import_source("folder", FolderSettings(path=pictures), tmp_path / "d", None, 16, 0.1, 2)
    assert contents(tmp_path / "d") == undisturbed


def test_a_larger_budget_finishes_what_a_smaller_one_refused(pictures, undisturbed, tmp_path):
    given_ = FolderSettings(path=pictures)
    with pytest.raises(InputError, match="12 of 210 images were refused"):
        import_source("folder", given_, tmp_path / "d", None, 16, 0.01)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").glob("*.tar")}
    import_source("folder", given_, tmp_path / "d", None, 16, 0.1)
    assert contents(tmp_path / "d") == undisturbed
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def unfinished(tmp_path):
    given_ = FolderSettings(path=tmp_path / "s")
    for n in range(6):
        (tmp_path / "s" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / "a" / f"{n}.jpg").write_bytes(jpeg(n, 0) if n < 5 else b"")
    with pytest.raises(InputError, match="1 of 6"):
        import_source("folder", given_, tmp_path / "d", None, 2)
    return given_, tmp_path / "d"


def test_another_source_does_not_go_on_with_it(tmp_path):
    given_, out = unfinished(tmp_path)
    with pytest.raises(InputError, match="beginning of another import"):
        import_source("folder", given_.model_copy(update={"name": "x"}), out, None, 2)
    with pytest.raises(InputError, match="beginning of another import"):
        import_source("folder", given_, out, None, 3)


def test_a_source_that_changed_meanwhile_is_noticed(tmp_path):
    given_, out = unfinished(tmp_path)
    (tmp_path / "s" / "a" / "0.jpg").unlink()
    with pytest.raises(InputError, match=r"source has changed.*'a/5.jpg'"):
        import_source("folder", given_, out, None, 2)


def test_a_shard_that_was_damaged_meanwhile_is_written_again(tmp_path):
    given_, out = unfinished(tmp_path)
    whole = {p: p.read_bytes() for p in out.glob("shard-*")}
    damaged = bytearray(whole[out / "shard-00001.tar"])
    damaged[700] ^= 1
    (out / "shard-00001.tar").write_bytes(damaged)
    (out / "shard-00002.idx").unlink()
    import_source("folder", given_, out, None, 2, 0.5)
    assert {p: p.read_bytes() for p in whole} == whole
    ShardDataset.open(out).verify()


def test_a_shortened_list_of_refusals_is_noticed(tmp_path):
    given_, out = unfinished(tmp_path)
    (out / "refused.jsonl").write_text("")
    with pytest.raises(InputError, match=r"refused\.jsonl is not as it was left"):
        import_source("folder", given_, out, None, 2)


def test_two_imports_into_one_folder_are_refused(tmp_path):
    def images():
        yield from source(2, 1)
        with pytest.raises(InputError, match="being written by another process"):
            write_dataset(source(2, 1), tmp_path / "d", {})

    assert write_dataset(images(), tmp_path / "d", {})["samples"] == 2


def test_duplicate_keys_and_impossible_names_are_refused(tmp_path):
    good = source(3, 2)
    bad = [
        good[1],
        good[4]._replace(image=jpeg(0, 9)),
        SourceImage(jpeg(0, 0), "", "c", "no identity"),
        SourceImage(jpeg(0, 0), "caf\udce9", "c", "no text"),
        SourceImage(jpeg(0, 0), "a", "c", "../../etc/passwd"),
        SourceImage(jpeg(0, 0), "a", "c", "quotes \" ' \n and 田"),
    ]
    manifest = write_dataset([*good, *bad], tmp_path / "d", {}, 3, 0.5)
    lines = map(json.loads, (tmp_path / "d" / "refused.jsonl").read_text().splitlines())
    assert [line["reason"] for line in lines] == ["duplicate key"] * 2 + ["name"] * 2
    assert manifest["samples"] == 8 and sorted(p.name for p in tmp_path.iterdir()) == ["d"]
    tar = str(tmp_path / "d" / "shard-00002.tar")
    (*_, last) = webdataset.WebDataset(tar, shardshuffle=False)
    assert json.loads(last["json"])["key"] == bad[-1].key


def test_a_refused_image_leaves_its_key_to_the_next(tmp_path):
    good = source(1, 1)[0]
    manifest = write_dataset([good._replace(image=b""), good], tmp_path / "d", {}, 2, 0.5)
    assert (manifest["samples"], manifest["refused"]) == (1, 1)


def test_an_import_without_a_good_image_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no readable image"):
        write_dataset([SourceImage(b"", "a", "c", "k")], tmp_path / "d", {}, max_refused=1.0)


def test_shards_end_at_a_size_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr("data_shards.writing.shard_builder.SHARD_BYTES", 20_000)
    manifest = write_dataset(source(20, 1), tmp_path / "d", {})
    sizes = [manifest["files"][name]["bytes"] for name in manifest["shards"]]
    assert len(sizes) > 2 and max(sizes) < 40_000
    dataset = ShardDataset.open(tmp_path / "d")
    assert [dataset.image(n) for n in range(20)] == [i.image for i in source(20, 1)]


def test_samples_are_one_table_whatever_its_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("data_shards.storage.samples._ROW_GROUP", 7)
    write_dataset(source(10, 2), tmp_path / "d", {}, shard_samples=3)
    assert pq.read_metadata(tmp_path / "d" / "samples.parquet").num_row_groups == 3
    dataset = ShardDataset.open(tmp_path / "d")
    assert dataset.identity.tolist() == [n // 2 for n in range(20)]


def test_shards_are_what_webdatasets_own_writer_writes(tmp_path):
    shard = ShardFile(tmp_path / "ours.tar")
    with webdataset.TarWriter(str(tmp_path / "theirs.tar"), mtime=0) as theirs:
        for n, image in enumerate([b"", b"x" * 511, b"x" * 512, b"x" * 513, *(jpeg(0, 0),) * 9]):
            shard.add(f"{n:09d}", str(n).encode(), image, b"{}")
            theirs.write({"__key__": f"{n:09d}", "cls": str(n), "jpg": image, "json": b"{}"})
    shard.close()
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()


@given(st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=8), st.integers(1, 9))
def test_taken_keys_are_a_set(chunks, fresh):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_shards.storage.keys._FRESH", fresh)
        keys, plain = TakenKeys(), set()
        for chunk in chunks:
            hashes = [key_hash(str(n)) for n in chunk]
            assert keys.known(hashes).tolist() == [h in plain for h in hashes]
            for h, known in zip(hashes, keys.known(hashes).tolist(), strict=True):
                assert (not known and keys.add(h)) == (h not in plain)
                plain.add(h)
            keys.merge_fresh()


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("foldr", [], "did you mean folder"),
        ("folder", ["camera=true"], "has no option 'camera': it has cameras, name"),
        ("folder", ["cameras"], "write key=value"),
        ("folder", ["cameras=[1"], "no YAML"),
        ("folder", ["cameras=7"], "folder: cameras: .*given: 7"),
    ],
)
def test_wrong_options_are_named_with_the_right_ones(name, options, why):
    with pytest.raises(InputError, match=why):
        source_settings(name, "x", options)


def test_options_that_look_like_numbers_stay_names():
    assert source_settings("folder", "x", ["name=007"]).name == "007"


@settings(max_examples=20)
@given(data=st.data())
def test_any_mix_of_good_and_bad_is_kept_or_listed(tmp_path_factory, data):
    """Every image of a source is either in a shard with its own identity, or a line of the list."""
    good = source(6, 2)
    bad = st.sampled_from([b"", b"garbage", good[0].image[:-20]])
    images = [
        i._replace(image=data.draw(st.one_of(st.just(i.image), bad)), key=data.draw(_KEYS))
        for i in good
    ]
    out = tmp_path_factory.mktemp("mix") / "d"
    try:
        write_dataset(images, out, {}, data.draw(st.integers(1, 5)), 1.0)
    except InputError:
        assert not any(image.image == g.image for image, g in zip(images, good, strict=True))
        return
    dataset = ShardDataset.open(out)
    kept = [(dataset.names[i], dataset.image(s)) for s, i in enumerate(dataset.identity)]
    taken, expected, refused = set(), [], 0
    for image, g in zip(images, good, strict=True):
        if image.image == g.image and image.key not in taken:
            taken.add(image.key)
            expected.append((image.identity, image.image))
        else:
            refused += 1
    assert kept == expected
    assert len((out / "refused.jsonl").read_text().splitlines()) == refused
    assert os.listdir(out).count(".import") == 0  # noqa: PTH208


_KEYS = st.sampled_from([f"key-{n}" for n in range(20)])


def test_ctrl_c_leaves_a_beginning_to_go_on_with(pictures, undisturbed, tmp_path):
    out = tmp_path / "d"
    stopped = subprocess.Popen(
        command(pictures, out, "--processes", "1"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (out / ".import" / "shard-00000.parquet").exists():
        assert stopped.poll() is None
        time.sleep(0.002)
    os.killpg(stopped.pid, signal.SIGINT)
    _, told = stopped.communicate()
    assert stopped.returncode == 130 and "the same command goes on" in told
    assert "Traceback" not in told
    import_source("folder", FolderSettings(path=pictures), out, None, 16, 0.1)
    assert contents(out) == undisturbed
