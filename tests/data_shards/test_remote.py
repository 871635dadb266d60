"""Remote datasets: whatever the server does, every sample is seen, right, within bounded space."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.orders.order import BlockSettings, UniformOrder, make_order
from data_shards.pipeline import PipelineSettings, training_batches
from data_shards.quarantine import Quarantine
from data_shards.settings import InputError
from data_shards.storage.cache import Cache
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings, RemoteFile, file_system, is_remote
from data_shards.writing.writer import write_dataset
from monitoring.metrics import Metrics
from tests.conftest import source
from tests.data_shards.readers import WINDOW, reader
from tests.data_shards.servers import bucket, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """240 samples in 20 shards."""
    path = tmp_path_factory.mktemp("remote") / "dataset"
    write_dataset(source(60, 4), path, {}, shard_samples=12)
    return path


@pytest.fixture(scope="module")
def local(folder):
    return ShardDataset.open(folder)


@pytest.fixture
def server(folder):
    with serving(folder) as server:
        yield server


def room_for(dataset, shards):
    """Bytes of that many of the largest shards."""
    names = dataset.manifest["shards"]
    return shards * max(dataset.manifest["files"][name]["bytes"] for name in names)


@pytest.fixture
def settings(tmp_path, local):
    """A cache of 6 of the 20 shards: two windows and two more."""
    return CacheSettings(folder=tmp_path / "cache", bytes=room_for(local, 6), wait=0.001)


def on_disk(settings):
    """Bytes of the cached shards, as two looks in a row agree on: read-ahead evicts meanwhile."""

    def look():
        sizes = {}
        for path in (settings.folder / "shards").glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):
                sizes[path.name] = path.stat().st_size
        return sizes

    before = look()
    while (after := look()) != before:
        before = after
    return sum(after.values())


def batches(dataset, order, iterations, quarantine=None):
    return training_batches(
        dataset, np.arange(60), order, 0, range(iterations), 24, 0, 1, PipelineSettings(),
        torch.device("cpu"), quarantine or Quarantine(None, 0),
    )  # fmt: skip


def block_order(dataset):
    settings = BlockSettings(kind="blocks", window=WINDOW)
    return make_order(settings, np.arange(240), dataset.identity, dataset.shard, 24, 3)


def counted(metrics, name):
    return metrics.registry.get_sample_value(f"perennial_cache_{name}_total")


def test_an_epoch_through_a_small_cache_and_a_bad_server_sees_every_sample_once(
    server, settings, local
):
    shards = local.manifest["shards"]
    faults = {3: "drop", 5: "corrupt", 7: "truncate", 11: "error"}
    for shard, fault in faults.items():
        server.faults[shards[shard]] = [fault]
    metrics = Metrics()
    dataset = ShardDataset.open(server.url, settings, metrics.count_cache)
    whole = batches(local, block_order(local), 10)
    seen = []
    for batch, wanted in zip(batches(dataset, block_order(dataset), 10), whole, strict=True):
        assert torch.equal(batch.images, wanted.images)
        assert torch.equal(batch.labels, wanted.labels)
        assert on_disk(settings) <= settings.bytes
        seen += batch.samples.tolist()
    assert sorted(seen) == list(range(240))
    assert counted(metrics, "retries") == 4
    assert counted(metrics, "mismatches") == 2
    misses, evictions = counted(metrics, "misses"), counted(metrics, "evictions")
    assert misses >= 20
    assert evictions >= misses - 6
    assert counted(metrics, "downloaded_bytes") >= sum(
        local.manifest["files"][name]["bytes"] for name in shards
    )


def test_what_the_cache_holds_is_not_fetched_again(server, settings, local):
    for _ in range(2):
        metrics = Metrics()
        dataset = ShardDataset.open(server.url, settings, metrics.count_cache)
        for sample in (0, 13, 1):
            assert dataset.image(sample) == local.image(sample)
    assert (counted(metrics, "hits"), counted(metrics, "misses")) == (2, 0)
    assert server.requests.count(local.manifest["shards"][0]) == 1
    assert server.requests.count("samples.parquet") == 1


def test_verifying_reads_every_file_where_it_lies_and_keeps_none(settings, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    with serving(copy) as server:
        dataset = ShardDataset.open(server.url, settings)
        files, done, server.requests = dataset.manifest["files"], [], []
        server.faults["shard-00003.tar"] = ["drop", "corrupt"]
        dataset.verify(done.append, settings)
        assert sorted(set(server.requests)) == sorted(files)
        assert done[-1] == sum(facts["bytes"] for facts in files.values())
        assert list(settings.folder.glob(".*")) == [] and on_disk(settings) == 0
        (copy / "shard-00007.idx").write_bytes(b"x" * files["shard-00007.idx"]["bytes"])
        with pytest.raises(InputError, match=r"shard-00007\.idx .* match its sha256.*: restore it"):
            dataset.verify(fetching=settings)
        (copy / "shard-00007.idx").unlink()
        with pytest.raises(InputError, match=r"shard-00007\.idx is missing"):
            dataset.verify(fetching=settings)
        dataset.verify()  # the tables are here
    assert list(settings.folder.glob(".*")) == []


def test_an_order_over_all_shards_needs_a_cache_of_all(server, settings, local):
    dataset = ShardDataset.open(server.url, settings)
    order = UniformOrder(np.arange(240), 0)
    with pytest.raises(InputError, match=r"data\.cache\.bytes.*data\.order\.kind=blocks"):
        next(batches(dataset, order, 1))
    enough = settings.model_copy(update={"bytes": room_for(local, 20)})
    dataset = ShardDataset.open(server.url, enough)
    assert len(list(batches(dataset, order, 3))) == 3


def test_an_evicted_shard_stays_readable_while_it_is_mapped(server, settings, local):
    dataset = ShardDataset.open(server.url, settings)
    image = dataset.image(0)
    for sample in range(12, 240, 12):
        dataset.image(sample)
    digest = local.manifest["files"][local.manifest["shards"][0]]["sha256"]
    assert not (settings.folder / "shards" / digest).exists()
    assert bytes(image) == local.image(0)


def test_the_least_recently_used_shard_goes_first(server, settings, local):
    metrics = Metrics()
    dataset = ShardDataset.open(server.url, settings, metrics.count_cache)
    kept = settings.folder / "shards"
    names = [local.manifest["files"][name]["sha256"] for name in local.manifest["shards"]]
    for shard in range(6):
        dataset.image(12 * shard)
    for shard, opened in enumerate((100, 1, 2, 3, 4, 5)):
        os.utime(kept / names[shard], (opened, opened))
    dataset.image(12 * 6)
    assert {path.name for path in kept.glob("[!.]*")} == {names[i] for i in (0, 2, 3, 4, 5, 6)}


def test_processes_share_a_cache(server, settings, local):
    """Two of one order and a cache of two windows: whoever is behind is waited for."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (server.url, settings, 240, 3, queue)
    processes = [context.Process(target=reader, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert all(results)
    fetched = [server.requests.count(name) for name in local.manifest["shards"]]
    assert min(fetched) >= 1
    assert sum(fetched) <= 2 * (20 + 2)  # with the next epoch's first window
    assert on_disk(settings) <= settings.bytes


def test_what_is_needed_first_gets_the_room_first(server, settings, local):
    """Else two processes could each hold what the other waits for."""
    hasty = settings.model_copy(update={"patience": 10.0})
    dataset, other = (ShardDataset.open(server.url, hasty) for _ in range(2))
    for first in (0, 8, 4, 12):
        others, ours = np.arange(first, first + 4), np.arange(first + 4, first + 8)
        for each in (dataset, other):
            each.files.need(others)
        for shard in others.tolist():
            other.files.view(shard)
        dataset.files.need(ours)  # of which two find room
        for shard in ours[:2].tolist():
            assert bytes(dataset.files.view(shard)) == bytes(local.files.view(shard))


def test_a_dataset_that_rests_keeps_no_room_from_others(server, settings, local):
    """A rank that waits for its next job. The cache has room for 6 shards."""
    settings = settings.model_copy(update={"patience": 0.5})
    rests, other = (ShardDataset.open(server.url, settings) for _ in range(2))
    ours, others = np.arange(4), np.arange(4, 8)

    def seen(dataset, shards):
        dataset.files.need(shards)
        for shard in shards.tolist():
            assert bytes(dataset.files.view(shard)) == bytes(local.files.view(shard))

    seen(rests, ours)
    with pytest.raises(InputError, match=r"no room for .*data\.cache\.bytes"):
        seen(other, others)
    rests.files.rest()
    seen(other, others)
    other.files.rest()
    seen(rests, ours)


def test_a_killed_download_leaves_nothing_behind(server, settings, local):
    server.faults[local.manifest["shards"][0]] = ["hang"]
    context = multiprocessing.get_context("spawn")
    arguments = (server.url, settings, 12, 0, context.Queue())
    process = context.Process(target=reader, args=arguments)
    process.start()
    kept = settings.folder / "shards"
    until = time.monotonic() + 60
    while not any(path.stat().st_size for path in kept.glob(".*.claim")):
        assert time.monotonic() < until and process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    full = settings.model_copy(update={"bytes": room_for(local, 1)})
    dataset = ShardDataset.open(server.url, full)
    assert dataset.image(13) == local.image(13)
    assert [path.name for path in kept.glob(".*") if path.name != ".lock"] == []


def test_a_server_that_never_delivers_ends_with_an_explanation(server, settings, local):
    name = local.manifest["shards"][0]
    server.faults[name] = ["corrupt"] * 3
    few = settings.model_copy(update={"attempts": 3})
    dataset = ShardDataset.open(server.url, few)
    with pytest.raises(InputError, match=rf"{name} could not be fetched in 3 attempts.*sha256"):
        dataset.image(0)
    assert len(server.requests) - server.requests.index(name) == 3
    assert list((settings.folder / "shards").glob(".*.part")) == []
    assert dataset.image(0) == local.image(0)


def test_missing_files_are_named(settings, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "shard-00004.tar").unlink()
    with serving(copy) as server:
        dataset = ShardDataset.open(server.url, settings)
        with pytest.raises(InputError, match=r"shard-00004\.tar is missing: restore"):
            dataset.image(50)
        with pytest.raises(InputError, match="holds no dataset"):
            ShardDataset.open(f"{server.url}/nothing", settings)


def test_a_cache_that_others_fill_is_an_error_after_a_while(settings, tmp_path):
    files = []
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode() * 1000)
        digest = hashlib.sha256(name.encode() * 1000).hexdigest()
        system, path = file_system(f"file://{tmp_path / name}")
        files.append(RemoteFile(system, path, 1000, digest))
    cache = Cache(settings.model_copy(update={"bytes": 1500, "patience": 0.2}))
    held = cache.open(files[0])
    with pytest.raises(InputError, match=r"no room for .*data\.cache\.bytes = 1,500"):
        cache.open(files[1])
    held.close()
    cache.open(files[1]).close()


def test_a_copy_that_rots_is_replaced_sample_by_sample(server, settings, local):
    """The copy's hash was right when it came; each image is checked again when it is read."""
    dataset = ShardDataset.open(server.url, settings)
    order = block_order(dataset)
    first = int(order.at(np.array([0]))[0])
    dataset.image(first)
    facts = local.manifest["files"][local.manifest["shards"][local.shard[first]]]
    with (settings.folder / "shards" / facts["sha256"]).open("r+b") as file:
        file.seek(int(local.offset[first]) + 9)
        file.write(b"\x00\x01")
    told = []
    quarantine = Quarantine(None, 1, lambda: told.append(1))
    (batch,) = batches(dataset, order, 1, quarantine)
    assert batch.samples[0] == order.at(np.array([1]))[0]
    assert told == [1]


@pytest.mark.parametrize("name", ["../shard.tar", "pipe:ls", ".hidden"])
def test_a_manifest_that_leads_elsewhere_is_refused(settings, folder, tmp_path, name):
    manifest = json.loads((folder / "manifest.json").read_text())
    facts = manifest["files"][manifest["shards"][0]]
    manifest["shards"][0], manifest["files"][name] = name, facts
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with serving(copy) as server, pytest.raises(InputError, match="not the plain name"):
        ShardDataset.open(server.url, settings)


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "simplecache::pipe:ls", " pipe:ls"])
def test_pipe_urls_are_refused(url):
    with pytest.raises(InputError, match="pipe: URLs run commands"):
        ShardDataset.open(url)


def test_a_file_url_is_a_folder(folder):
    assert not is_remote(f"file://{folder}")
    assert len(ShardDataset.open(f"file://{folder}")) == 240


def test_an_s3_bucket_holds_a_dataset(folder, settings, monkeypatch):
    from s3fs import S3FileSystem

    with bucket() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        s3 = S3FileSystem()
        s3.mkdir("faces")
        s3.put(str(folder), "faces/train", recursive=True)
        metrics = Metrics()
        dataset = ShardDataset.open("s3://faces/train/", settings, metrics.count_cache)
        seen = [b.samples for b in batches(dataset, block_order(dataset), 10)]
        assert sorted(np.concatenate(seen).tolist()) == list(range(240))
        assert counted(metrics, "misses") >= 20  # the next epoch is fetched ahead, too
        with pytest.raises(InputError, match="holds no dataset"):
            ShardDataset.open("s3://faces/other", settings)
    S3FileSystem.clear_instance_cache()
