"""Datasets that a stranger wrote, with hashes that are right: each ends in one line of error."""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.settings import InputError
from data_shards.storage.dataset import SampleError, ShardDataset
from data_shards.storage.remote import CacheSettings, RemoteFile
from data_shards.writing.journal import JOURNAL_ROWS
from data_shards.writing.writer import refusals, write_dataset
from launch.commands.importing import describe
from tests.conftest import source
from tests.data_shards.servers import serving


@pytest.fixture
def copy(small_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_folder, tmp_path / "copy"))


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def put(folder, name, content):
    """Writes a file of a dataset, and makes the manifest say that this is right."""
    (folder / name).write_bytes(content)
    manifest = manifest_of(folder)
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def put_table(folder, name, table, **options):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    put(folder, name, sink.getvalue().to_pybytes())


def read_all(location, cache=None):
    """What every command does with a dataset."""
    dataset = ShardDataset.open(location, cache)
    describe(dataset)
    dataset.names, dataset.key_hashes  # noqa: B018
    dataset.keys(np.arange(2))
    for name in dataset.manifest["tables"]:
        dataset.table(name)
    dataset.verify()


def refused(location, cache=None):
    with pytest.raises(InputError) as error:
        read_all(location, cache)
    text = str(error.value)
    assert "\n" not in text and len(text) < 1000
    return text


def column(name, value):
    def change(table):
        place = table.schema.get_field_index(name)
        values = pa.array([value] * table.num_rows, table.schema.field(name).type)
        return table.set_column(place, name, values)

    return change


TABLES = {
    "offset -1": column("offset", -1),
    "offset 2^62": column("offset", 2**62),
    "offset 2^63-1": column("offset", 2**63 - 1),
    "size 0": column("size", 0),
    "size -1": column("size", -1),
    "size 2^31-1": column("size", 2**31 - 1),
    "shard 99": column("shard", 99),
    "shard -1": column("shard", -1),
    "identity -1": column("identity", -1),
    "identity 2^40": column("identity", 2**40),
    "camera 10^9": column("camera", 10**9),
    "camera -1": column("camera", -1),
    "role 99": column("role", 99),
    "role -1": column("role", -1),
    "the same sample again and again": lambda t: pa.concat_tables([t.slice(0, 1)] * t.num_rows),
    "backwards": lambda t: t.take(list(reversed(range(t.num_rows)))),
    "nulls": lambda t: column("shard", None)(t),
    "no column": lambda t: t.drop(["crc32"]),
    "twice a column": lambda t: t.append_column("role", t["role"]),
    "text": lambda t: t.set_column(0, "shard", pa.array(["x"] * t.num_rows)),
    "wider": lambda t: t.set_column(0, "shard", t["shard"].cast(pa.int64())),
    "nested": lambda t: t.set_column(0, "shard", pa.array([[1]] * t.num_rows)),
    "no rows": lambda t: t.slice(0, 0),
    "fewer rows": lambda t: t.slice(1),
}


@pytest.mark.reliability(8, "samples outside of their shard, their identities or roles are refused")
@pytest.mark.parametrize("case", TABLES)
def test_a_samples_table_is_checked_before_it_is_believed(copy, case):
    table = pq.read_table(copy / "samples.parquet")
    put_table(copy, "samples.parquet", TABLES[case](table))
    assert "samples.parquet" in refused(copy)


def set_to(*path, value):
    def change(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


def also_file(name):
    digest = hashlib.sha256(b"").hexdigest()
    return set_to("files", name, value={"bytes": 0, "sha256": digest})


MANIFESTS = {
    "files a list": set_to("files", value=[]),
    "files missing": lambda m: m.pop("files"),
    "shards missing": lambda m: m.pop("shards"),
    "shards of numbers": set_to("shards", value=[1, 2]),
    "shard twice": lambda m: m["shards"].append(m["shards"][0]),
    "shard ../": set_to("shards", value=["../../../../etc/passwd"]),
    "shard absolute": set_to("shards", value=["/etc/passwd"]),
    "shard nowhere": set_to("shards", value=["nowhere.tar"]),
    "facts null": set_to("files", "samples.parquet", value=None),
    "bytes text": set_to("files", "samples.parquet", "bytes", value="x"),
    "bytes -1": set_to("files", "samples.parquet", "bytes", value=-1),
    "bytes 10^30": set_to("files", "samples.parquet", "bytes", value=10**30),
    "bytes true": set_to("files", "samples.parquet", "bytes", value=True),
    "a path for a sha256": set_to("files", "samples.parquet", "sha256", value="../../x"),
    "sha256 with a newline": lambda m: set_to(
        "files", "samples.parquet", "sha256", value=m["files"]["samples.parquet"]["sha256"] + "\n"
    )(m),
    "file ../": also_file("../../../../etc/hostname"),
    "file absolute": also_file("/dev/zero"),
    "file hidden": also_file(".ssh"),
    "file of Windows": also_file("c:\\x"),
    "file with an escape": also_file("\x1b[2J"),
    "file too long": also_file("x" * 300),
    "file empty": also_file(""),
    "cameras null": set_to("cameras", value=None),
    "samples text": set_to("samples", value="[/]"),
    "samples 10^12": set_to("samples", value=10**12),
    "identities -1": set_to("identities", value=-5),
    "identities 10^12": set_to("identities", value=10**12),
    "one identity more": lambda m: set_to("identities", value=m["identities"] + 1)(m),
    "image_size text": set_to("image_size", value="[/b]"),
    "image_size 10^9": set_to("image_size", value=[10**9, 10**9]),
    "tables ../": set_to("tables", value=["../../../etc/passwd"]),
    "tables not there": set_to("tables", value=["pairs"]),
    "version list": set_to("version", value=[]),
    "version long": set_to("version", value="x" * 5000),
    "refused null": set_to("refused", value=None),
    "source text": set_to("source", value="x"),
}


@pytest.mark.reliability(8, "a manifest holds plain names, sha256 and sizes, or is refused")
@pytest.mark.parametrize("case", MANIFESTS)
@pytest.mark.parametrize("remote", [False, True], ids=["folder", "url"])
def test_a_manifest_is_checked_before_it_is_believed(copy, tmp_path, case, remote):
    manifest = manifest_of(copy)
    MANIFESTS[case](manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    if not remote:
        refused(copy)
        return
    with serving(copy) as server:
        refused(server.url, CacheSettings(folder=tmp_path / "cache", wait=0, attempts=1))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"version": 2, "version": 2}']
)
def test_a_manifest_that_is_none(copy, content):
    (copy / "manifest.json").write_bytes(content)
    assert "manifest.json" in refused(copy)


@pytest.mark.parametrize("name", ["manifest.json", "samples.parquet", "shard-00001.tar"])
@pytest.mark.parametrize("kind", ["fifo", "device", "outside", "folder"])
def test_a_file_that_is_no_regular_file_of_the_folder(copy, tmp_path, name, kind):
    path = copy / name
    path.rename(tmp_path / "outside")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "outside")
    refused(copy)


def many(rows, value=0):
    """A samples table of so many equal rows, in a few bytes."""
    names = [field for field in JOURNAL_ROWS if field.name != "key"]
    arrays = [pa.array(np.full(rows, value), field.type) for field in names]
    return pa.table(arrays, schema=pa.schema(names))


@pytest.mark.reliability(8, "a table of millions of rows in a few bytes is refused by its footer")
def test_rows_that_no_byte_is_there_for_are_not_read(copy):
    rows = 5_000_000
    put_table(copy, "samples.parquet", many(rows))
    manifest = manifest_of(copy)
    assert manifest["files"]["samples.parquet"]["bytes"] < rows
    assert "rows instead of" in refused(copy)
    # even where the manifest promises them, in shards that claim the room
    with (copy / "shard-00000.tar").open("ab") as shard:
        shard.truncate(rows * 512)
    manifest["files"]["shard-00000.tar"]["bytes"] = rows * 512
    manifest["samples"] = rows
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "are possible" in refused(copy)


@pytest.mark.parametrize("codec", ["zstd", "gzip", "snappy"])
def test_one_long_name_in_every_row_is_not_written_out(copy, codec):
    names = pa.table({"name": pa.array(["x" * 2_000_000] * manifest_of(copy)["identities"])})
    put_table(copy, "identities.parquet", names, compression=codec)
    assert "identities.parquet" in refused(copy)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1junkPAR1", b"x" * 1000])
@pytest.mark.parametrize("name", ["samples", "identities", "keys"])
def test_what_is_no_parquet(copy, name, content):
    put(copy, f"{name}.parquet", content)
    assert f"{name}.parquet" in refused(copy)


@pytest.mark.parametrize(
    "pairs",
    [
        {"left": [0, 10**6], "right": [0, 1], "same": [True, False], "fold": [0, 1]},
        {"left": [0, -2], "right": [0, 1], "same": [True, False], "fold": [0, 1]},
        {"left": [0.5, 1.5], "right": [0, 1], "same": [True, False], "fold": [0, 1]},
        {"left": [[0], [1]], "right": [0, 1], "same": [True, False], "fold": [0, 1]},
        {"right": [0, 1], "same": [True, False], "fold": [0, 1]},
        {"left": [0, 1], "right": [0, None], "same": [True, False], "fold": [0, 1]},
    ],
)
def test_pairs_of_samples_that_are_not_there(tmp_path, pairs):
    good = pa.table({"left_key": ["0_0"], "right_key": ["1_0"], "same": [True], "fold": [0]})
    write_dataset(source(2, 1), tmp_path / "d", {}, tables={"pairs": good})
    read_all(tmp_path / "d")
    put_table(tmp_path / "d", "pairs.parquet", pa.table(pairs))
    assert "pairs.parquet" in refused(tmp_path / "d")


def outside(tmp_path):
    """Files beside the cache that a path in place of a sha256 would reach."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_bytes(b"mine")
    return victim


@pytest.mark.reliability(8, "a path in place of a sha256 reaches nothing outside of the cache")
@pytest.mark.parametrize("digest", ["../../victim/kept", "/etc/passwd", "../../victim/new", ""])
def test_a_remote_sha256_is_no_path(copy, tmp_path, digest):
    victim = outside(tmp_path)
    before = (victim / "kept").stat()
    manifest = manifest_of(copy)
    for name in manifest["shards"]:
        manifest["files"][name]["sha256"] = digest
    (copy / "manifest.json").write_text(json.dumps(manifest))
    cache = CacheSettings(folder=tmp_path / "cache", wait=0, attempts=1)
    with serving(copy) as server:
        refused(server.url, cache)
        assert not [name for name in server.requests if name.endswith(".tar")]
    assert [path.name for path in victim.iterdir()] == ["kept"]
    assert (victim / "kept").stat().st_atime_ns == before.st_atime_ns
    with pytest.raises(ValueError, match="no sha256"):
        RemoteFile(None, "x", 1, digest)


@pytest.mark.reliability(8, "a download ends when more than the declared bytes come")
@pytest.mark.parametrize("name", ["manifest.json", "samples.parquet", "shard-00000.tar"])
def test_a_server_that_sends_without_end(copy, tmp_path, name):
    cache = CacheSettings(folder=tmp_path / "cache", wait=0, attempts=1)
    with serving(copy) as server:
        server.faults[name] = ["endless"]
        with pytest.raises(InputError, match=r"more than its .* bytes come"):
            ShardDataset.open(server.url, cache).image(0)
        # it was read a few megabytes beyond what it declared, and no part of it stays
        assert server.sent[name] < 400_000_000
    held = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in held) < 1_000_000


@pytest.mark.reliability(8, "tables that are together larger than the cache are not fetched")
@pytest.mark.parametrize("sizes", [[2**47], [15_000_000_000, 15_000_000_000]])
def test_tables_larger_than_the_cache_are_not_fetched(copy, tmp_path, sizes):
    manifest = manifest_of(copy)
    for name, size in zip(["keys.parquet", "more.parquet"], sizes, strict=False):
        manifest["files"][name] = {"bytes": size, "sha256": "0" * 64}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with serving(copy) as server:
        assert "data.cache.bytes" in refused(server.url, CacheSettings(folder=tmp_path / "cache"))
        assert server.requests == ["manifest.json"]


@pytest.mark.reliability(8, "bytes changed at random in tables and manifest end in one line")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(
        ["samples.parquet", "identities.parquet", "keys.parquet", "manifest.json"]
    ),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_any_change_is_read_or_refused(small_folder, copy, name, changes):
    """From the end, where a Parquet file has its footer; pyarrow once ended the process."""
    content = bytearray((small_folder / name).read_bytes())
    for back, value in changes:
        content[-1 - back % len(content)] = value
    (copy / "manifest.json").write_bytes((small_folder / "manifest.json").read_bytes())
    if name == "manifest.json":
        (copy / name).write_bytes(content)
    else:
        put(copy, name, bytes(content))
    with contextlib.suppress(InputError, SampleError):
        read_all(copy)
    (copy / name).write_bytes((small_folder / name).read_bytes())


def test_names_that_are_not_utf8(copy):
    count = manifest_of(copy)["identities"]
    names = pa.array([b"\xff"] * count, pa.binary()).cast(pa.string(), safe=False)
    put_table(copy, "identities.parquet", pa.table({"name": names}))
    assert "identities.parquet" in refused(copy)


@pytest.mark.parametrize(
    "line", ["x", "[]", "null", "{}", '{"reason": "a", "reason": "b"}', "[" * 100_000]
)
def test_a_list_of_the_refused_that_is_none(tmp_path, line):
    (tmp_path / "refused.jsonl").write_text('{"reason": "size", "counts": false}\n')
    assert refusals(tmp_path) == {("size", False): 1}
    (tmp_path / "refused.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="damaged"):
        refusals(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1junkPAR1", b"facts", b"rows", b"paths"])
def test_the_journal_of_an_import_is_checked(tmp_path, content):
    """An import into a folder that somebody else began."""
    place = tmp_path / "d"
    record = place / ".import" / "shard-00000.parquet"
    record.parent.mkdir(parents=True)
    empty = pa.table({field.name: pa.array([], field.type) for field in JOURNAL_ROWS})
    digest = {"bytes": 1, "sha256": "0" * 64}
    facts = {"consumed": 1, "last_key": "", "refused_bytes": 0, "identities": [], "cameras": []}
    facts |= {"sizes": [], "files": {"../../outside": digest} if content == b"paths" else {}}
    if content == b"rows":
        empty = empty.drop(["crc32"])
    if content in (b"facts", b"rows", b"paths"):
        kept = b"{}" if content == b"facts" else json.dumps(facts).encode()
        pq.write_table(empty.replace_schema_metadata({b"perennial": kept}), record)
    else:
        record.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        write_dataset(source(2, 1), place, {})
