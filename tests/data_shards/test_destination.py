"""Datasets written into a bucket: the bytes of a folder, whatever is killed or goes wrong."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from PIL import Image
from s3fs import S3FileSystem

from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.sources.folder import FolderSettings
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings
from data_shards.writing.destination import destination_at
from data_shards.writing.importing import import_source
from data_shards.writing.merging import merge_datasets
from data_shards.writing.writer import write_dataset
from tests.conftest import jpeg, source
from tests.data_shards.servers import bucket
from tests.data_shards.test_importing import contents

SHARD = 12


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Some fifty small images of six identities, some of them broken, one a PNG."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(48):
        path = root / f"id-{number // 8}" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"broken" if number % 17 == 3 else jpeg(number, 0))
    Image.new("RGB", (16, 16)).save(root / "id-0" / "x.png")
    return root


@pytest.fixture(scope="module")
def local(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "d"
    import_source("folder", FolderSettings(path=pictures), out, None, SHARD, 0.1)
    return contents(out)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """An empty bucket `faces`, and a home of its own."""
    with bucket() as server:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        S3FileSystem().mkdir("faces")
        yield server
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def settings(tmp_path):
    return CacheSettings(folder=tmp_path / "cache", attempts=4, wait=0.001)


def held(url):
    """What is in a bucket's folder, by name, past any cache and proxy of ours."""
    s3, root = S3FileSystem(), url.removeprefix("s3://")
    s3.invalidate_cache()
    return {path.removeprefix(root + "/"): s3.cat_file(path) for path in s3.find(root)}


def bring(pictures, place):
    return import_source("folder", FolderSettings(path=pictures), place, None, SHARD, 0.1)


def command(pictures, out):
    run = [sys.executable, "-m", "launch.cli", "shards", "import", "folder", str(pictures)]
    options = ["--shard-samples", str(SHARD), "--max-refused", "0.1", "--processes", "1"]
    return [*run, "--out", out, *options]


def test_an_import_through_faults_holds_the_bytes_of_a_folder(server, settings, pictures, local):
    faults = {
        "shard-00001.tar": "corrupt",
        "shard-00002.tar": "truncate",
        "shard-00003.tar": "drop",
        "shard-00000.idx": "error",
        "shard-00002.parquet": "corrupt",
        "samples.parquet": "truncate",
        "manifest.json": "corrupt",
    }
    for name, fault in faults.items():
        server.faults[name] = [fault]
    place = destination_at("s3://faces/train/", settings)
    most = []
    shards = place.keep

    def keep(name, digest):
        most.append(len(list(place.folder.glob("*.tar"))))
        shards(name, digest)

    place.keep = keep
    bring(pictures, place)
    place.leave()
    assert held("s3://faces/train") == local
    assert max(most) == 1, "more than a shard at a time lay here"
    assert not any(server.faults.values())
    assert not place.folder.exists()
    assert server.uploads[-1] == "manifest.json"


def test_a_killed_upload_goes_on_from_any_machine(server, pictures, local, tmp_path):
    """SIGKILL to the real command while an upload hangs, then the command with another home."""
    url = "s3://faces/train"
    server.faults["shard-00002.tar"] = ["hang"]
    killed = subprocess.Popen(command(pictures, url), env={**os.environ})
    try:
        assert server.hung.wait(120)
        family = psutil.Process(killed.pid).children(recursive=True)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    psutil.wait_procs(family, timeout=60)
    with pytest.raises(InputError, match="holds no dataset"):
        ShardDataset.open(url, CacheSettings(folder=tmp_path / "other"))
    before = len(server.uploads)
    elsewhere = {**os.environ, "HOME": str(tmp_path / "elsewhere")}
    again = subprocess.run(command(pictures, url), env=elsewhere, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "46 images of 6 identities in s3://faces/train, 3 refused" in " ".join(
        again.stdout.split()
    )
    assert held(url) == local
    assert {n for n in server.uploads[before:] if n.endswith(".tar")} == {
        name for name in local if name.endswith(".tar") and name >= "shard-00002.tar"
    }, "finished shards are not uploaded again"
    assert not list((tmp_path / "elsewhere" / ".cache/perennial/imports").iterdir())
    third = subprocess.run(command(pictures, url), env=elsewhere, capture_output=True, text=True)
    assert third.returncode == 0 and "already" in third.stdout


@pytest.mark.parametrize(
    "name", ["manifest.json", "shard-00003.parquet", "refused.jsonl", "source.json"]
)
def test_an_import_that_ends_at_any_upload_goes_on(server, settings, pictures, local, name):
    """Whatever the last upload was, and however much of the journal was deleted."""
    once = settings.model_copy(update={"attempts": 1})
    server.faults[name] = ["corrupt"]
    with pytest.raises(InputError, match=f"{name} could not be written in 1 attempts.*sha256"):
        bring(pictures, destination_at("s3://faces/d", once))
    bring(pictures, destination_at("s3://faces/d", settings))
    assert held("s3://faces/d") == local


def test_a_journal_that_outlived_its_import_is_deleted(server, settings, pictures, local):
    place = destination_at("s3://faces/d", settings)
    place.forget_journal = lambda: None  # killed before it
    bring(pictures, place)
    assert set(held("s3://faces/d")) > set(local)
    before = len(server.uploads)
    bring(pictures, destination_at("s3://faces/d", settings))
    assert held("s3://faces/d") == local
    assert not [name for name in server.uploads[before:] if name.endswith(".tar")]
    with pytest.raises(InputError, match="s3://faces/d already holds a dataset"):
        bring(pictures, destination_at("s3://faces/d", settings))


def test_a_remembered_file_that_comes_damaged_is_fetched_again(server, settings, tmp_path):
    place = destination_at("memory://kept/d", settings)
    broken = [*source(4, 2), SourceImage(b"", "a", "c", "broken")]
    with pytest.raises(InputError, match="1 of 9 images were refused"):
        write_dataset(broken, place, {}, 4)
    files, answers = place._system, []

    class Flaky:
        def cat_file(self, path):
            content = files.cat_file(path)
            answers.append(path)
            return content[:-1] if len(answers) % 2 else content

        def __getattr__(self, name):
            return getattr(files, name)

    again = destination_at("memory://kept/d", settings)
    again._system = Flaky()
    write_dataset(broken, again, {}, 4, 0.5)
    write_dataset(broken, tmp_path / "d", {}, 4, 0.5)
    assert len(answers) >= 6
    assert {n: files.cat_file(f"/kept/d/{n}") for n in contents(tmp_path / "d")} == contents(
        tmp_path / "d"
    )


def test_datasets_are_merged_from_url_to_url(server, settings, tmp_path):
    parts = [source(6, 2)[:6], source(6, 2)[6:]]
    for number, part in enumerate(parts):
        write_dataset(part, tmp_path / str(number), {}, 4)
        write_dataset(part, destination_at(f"s3://faces/{number}", settings), {}, 4)
    merge_datasets([ShardDataset.open(tmp_path / n) for n in "01"], tmp_path / "local")
    remote = [ShardDataset.open(f"s3://faces/{n}", settings) for n in "01"]
    merge_datasets(remote, destination_at("s3://faces/merged", settings))
    assert held("s3://faces/merged") == contents(tmp_path / "local")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:1/faces", "can only be read: give the URL of a bucket"),
        ("pipe:cat > x", "pipe: URLs run commands"),
        ("nosuch://faces/d", "nosuch://faces/d cannot be read"),
        ("s3://nobodys/d", r"could not be written \(.*\): does the bucket exist"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(server, settings, url, words):
    with pytest.raises(InputError, match=words):
        write_dataset(source(2, 1), destination_at(url, settings), {})
    assert "nobodys" not in S3FileSystem().ls("")


def test_denied_access_ends_at_once(server, settings):
    server.faults["source.json"] = ["denied"] * 9
    with pytest.raises(InputError, match=r"source.json could not be written \(access denied"):
        write_dataset(source(2, 1), destination_at("s3://faces/d", settings), {})
    assert server.uploads.count("source.json") == 1


def test_another_import_does_not_go_on_with_it(server, settings, pictures):
    place = destination_at("s3://faces/d", settings)
    with pytest.raises(InputError, match="3 of 49 images were refused"):
        import_source("folder", FolderSettings(path=pictures), place, None, SHARD)
    other = CacheSettings(folder=settings.folder / "elsewhere", attempts=1)
    with pytest.raises(InputError, match="s3://faces/d holds the beginning of another import"):
        write_dataset(source(2, 1), destination_at("s3://faces/d", other), {})
    with pytest.raises(InputError, match="s3://faces/e is being written by another process"):
        write_dataset(nested(settings), destination_at("s3://faces/e", settings), {})


def nested(settings):
    """Images, the second of which comes after another import into the same place was tried."""
    first, *others = source(2, 1)
    yield first
    write_dataset(source(2, 1), destination_at("s3://faces/e", settings), {})
    yield from others
