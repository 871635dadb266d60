"""Opens a dataset that `writing.writer` wrote: its tables, its hashes, any sample's bytes."""

import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_shards.files import fingerprint, sha256
from data_shards.settings import InputError
from data_shards.storage.cache import Cache
from data_shards.storage.kinds import kind_of, no_dataset
from data_shards.storage.manifest import MANIFEST_BYTES, parse_manifest, shard_sizes
from data_shards.storage.remote import (
    CacheSettings,
    Count,
    RemoteFile,
    fetch_tables,
    file_system,
    ignore,
    is_remote,
    verify_remote,
)
from data_shards.storage.samples import read_samples
from data_shards.storage.shard_files import LocalShards, RemoteShards, ShardFiles
from untrusted.files import read_bytes
from untrusted.json_text import parse_json
from untrusted.parquet import Malformed, column_names, read_table

_META_BYTES = 1 << 20
_FREE_ROWS = 1_000_000
"""Rows that an extra table may have beside 8 a byte: run-length encoding could promise billions."""
_SAMPLES = {"pairs": ("left", "right"), "noisy": ("sample",), "templates": ("sample",)}
"""Columns of extra tables that hold sample numbers, or -1."""
_KINDS = {
    **dict.fromkeys(("left", "right", "sample", "template", "medium"), pa.types.is_int64),
    "same": pa.types.is_boolean,
    "fold": pa.types.is_integer,
    "part": pa.types.is_string,
}


def _plain(kind: pa.DataType) -> bool:
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return numbers or pa.types.is_boolean(kind) or pa.types.is_string(kind)


class SampleError(ValueError):
    """A sample's bytes differ from what was written; the message names sample and file."""


@dataclass(frozen=True)
class ShardDataset:
    """A dataset's samples by number: [n] arrays of their places, identities, cameras and roles."""

    location: str
    """Its URL or path."""
    folder: Path
    """Where its tables lie; for a remote dataset, a copy of them."""
    manifest: dict[str, Any]
    files: ShardFiles
    """The shards' bytes."""
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    identity: NDArray[np.int64]
    camera: NDArray[np.int32]
    role: NDArray[np.int8]
    crc32: NDArray[np.uint32]

    @classmethod
    def open(
        cls, location: Path | str, cache: CacheSettings | None = None, count: Count = ignore
    ) -> "ShardDataset":
        """Opens the dataset in a folder or at a URL of fsspec, whose shards `cache` will hold.

        Reads the manifest and the tables, and checks that every local file is there at full
        length. `count` is called with the cache's events. Raises InputError naming the file and
        the remedy. Hashes are checked by `verify`, and of remote shards when they are fetched.
        """
        if is_remote(location):
            return cls._open_remote(str(location).rstrip("/"), cache or CacheSettings(), count)
        folder = Path(str(location).removeprefix("file://"))
        manifest = cls._manifest(folder)
        for name, facts in manifest["files"].items():
            _check_file(folder / name, facts["bytes"])
        names = manifest["shards"]
        files = LocalShards(folder, names)
        return cls(str(folder), folder, manifest, files, **cls._columns(folder, manifest))

    @classmethod
    def _open_remote(cls, url: str, settings: CacheSettings, count: Count) -> "ShardDataset":
        folder = fetch_tables(url, settings)
        manifest = cls._manifest(folder)
        system, root = file_system(url)
        facts = [(name, manifest["files"][name]) for name in manifest["shards"]]
        remote = [RemoteFile(system, f"{root}/{n}", f["bytes"], f["sha256"]) for n, f in facts]
        files = RemoteShards(remote, Cache(settings, count))
        return cls(url, folder, manifest, files, **cls._columns(folder, manifest))

    @staticmethod
    def _manifest(folder: Path) -> dict[str, Any]:
        """The manifest in `folder`. Raises InputError when there is none of this version."""
        path = folder / "manifest.json"
        if not path.exists() or kind_of(folder) in ("run", "model", "checkpoint"):
            raise InputError(no_dataset(folder))
        try:
            return parse_manifest(read_bytes(path, MANIFEST_BYTES, folder), str(path))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error

    @staticmethod
    def _columns(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
        """The columns of the samples table."""
        table = _unchanged(folder, manifest, "samples")
        counts = manifest["samples"], shard_sizes(manifest)
        with _intact(table):
            return read_samples(table, *counts, manifest["identities"], len(manifest["cameras"]))

    def __len__(self) -> int:
        return len(self.shard)

    @cached_property
    def fingerprint(self) -> str:
        """A hash that changes whenever any file of the dataset does."""
        return fingerprint(self.manifest)

    @cached_property
    def names(self) -> NDArray[np.object_]:
        """The identities' names ([number of identities]), by id."""
        path = _unchanged(self.folder, self.manifest, "identities")
        count = self.manifest["identities"]
        with _intact(path):
            names = read_table(path, {"name": pa.string()}, count, count)["name"]
        # not to_numpy: it imports pandas, which takes a third of a second
        return np.array(names.to_pylist(), dtype=object)

    @cached_property
    def key_hashes(self) -> NDArray[np.uint64]:
        """[n] `key_hash` of each sample's key. Raises InputError when the table is missing."""
        if "keys.parquet" not in self.manifest["files"]:
            raise InputError(f"{self.location} has no keys.parquet: build the dataset again")
        path = _unchanged(self.folder, self.manifest, "keys")
        with _intact(path):
            return read_table(path, {"key": pa.uint64()}, len(self), len(self))["key"].to_numpy()

    def keys(self, samples: NDArray[np.int64]) -> list[str]:
        """The sources' names of `samples` ([b]), from the members that follow their images.

        Raises SampleError when one is damaged.
        """
        return [str(self._meta(sample)["key"]) for sample in samples.tolist()]

    def _meta(self, sample: int) -> dict[str, Any]:
        shard, end = int(self.shard[sample]), int(self.offset[sample] + self.size[sample])
        view = self.files.view(shard)
        header = end + -end % tarfile.BLOCKSIZE
        start = header + tarfile.BLOCKSIZE
        try:
            member = tarfile.TarInfo.frombuf(view[header:start].tobytes(), "utf-8", "strict")
            if not 0 <= member.size <= _META_BYTES:
                raise ValueError("too long")
            meta = parse_json(view[start : start + member.size].tobytes())
            if not isinstance(meta, dict) or "key" not in meta:
                raise ValueError("no key")
            return meta
        except (tarfile.HeaderError, ValueError) as error:
            where = self.files.name(shard)
            raise SampleError(f"what {where} tells of sample {sample} is damaged") from error

    def table(self, name: str) -> pa.Table:
        """Reads an extra table that the source defined, such as "pairs".

        Sample numbers are -1 where the image was refused. Raises InputError when there is no table
        of that name, or it was changed.
        """
        held = self.manifest.get("tables", [])
        if name not in held:
            raise InputError(f"{self.location} has no table {name!r}; it has {held or 'none'}")
        path = _unchanged(self.folder, self.manifest, name)
        with _intact(path):
            kinds = {column: _KINDS.get(column, _plain) for column in column_names(path)}
            table = read_table(path, kinds, None, _FREE_ROWS + 8 * path.stat().st_size)
            for column in _SAMPLES.get(name, ()):
                least, most = (f(table[column].to_numpy(), initial=0) for f in (np.min, np.max))
                if least < -1 or most >= len(self):
                    raise Malformed(f"{column} names samples that are not there")
        return table

    def image(self, sample: int) -> bytes:
        """The encoded JPEG of a sample.

        Raises SampleError when its checksum differs from the one taken when it was written.
        """
        (image,) = self.images(np.array([sample]))
        if image is None:
            where = f"byte {self.offset[sample]} of {self.files.name(int(self.shard[sample]))}"
            raise SampleError(f"sample {sample} at {where} is damaged")
        return image

    def images(self, samples: NDArray[np.int64]) -> list[bytes | None]:
        """The encoded JPEGs of `samples` ([b]); None in place of a damaged one.

        They are copied before they are checked: a mapped file may change until it is decoded, and
        DALI gives up its whole pipeline over one picture.
        """
        columns = (self.shard, self.offset, self.size, self.crc32)
        found: list[bytes | None] = []
        for shard, start, size, crc in zip(*(c[samples].tolist() for c in columns), strict=True):
            jpeg = self.files.view(shard)[start : start + size].tobytes()
            found.append(jpeg if zlib.crc32(jpeg) == crc else None)
        return found

    def verify(
        self,
        progress: Callable[[int], None] = lambda done: None,
        fetching: CacheSettings | None = None,
    ) -> None:
        """Compares every local file with its sha256; `progress` is called with the bytes done.

        Of a remote dataset only the tables are local; with `fetching` all of its files are fetched
        and compared. Raises InputError naming the first that differs.
        """
        done, local = 0, isinstance(self.files, LocalShards)
        if fetching is not None and not local:
            verify_remote(self.location, self.manifest["files"], fetching, progress)
            return
        for name, facts in self.manifest["files"].items():
            if not local and not (self.folder / name).exists():
                continue
            if sha256(self.folder / name) != facts["sha256"]:
                raise InputError(
                    f"{self.folder / name} does not match its sha256 in manifest.json: "
                    "restore it or build the dataset again"
                )
            progress(done := done + facts["bytes"])


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    """Turns errors of reading the table at `path` into an InputError."""
    try:
        yield
    except (OSError, Malformed, KeyError) as error:
        why = f"has no column {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is damaged ({why}): build the dataset again") from error


def _unchanged(folder: Path, manifest: Mapping[str, Any], table: str) -> Path:
    """The path of a table whose sha256 is the manifest's. Raises InputError otherwise."""
    path = folder / f"{table}.parquet"
    if sha256(path) != manifest["files"][path.name]["sha256"]:
        raise InputError(f"{path} was changed: restore it or build the dataset again")
    return path


def _check_file(path: Path, wanted: int) -> None:
    """Raises InputError unless a regular file is there at full length: no link, no device."""
    try:
        facts = path.lstat()
    except OSError as error:
        raise InputError(f"{path} is missing: restore it or build the dataset again") from error
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"{path} is no regular file: put the file itself in its place")
    if (found := facts.st_size) != wanted:
        raise InputError(
            f"{path} has {found} bytes instead of {wanted}: it is truncated or was changed; "
            "restore it or build the dataset again"
        )
