"""Opens a dataset written by `data_shards.writer`: its tables, its hashes, any sample's bytes."""

import json
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.cache import Cache
from data_shards.files import fingerprint, sha256
from data_shards.kinds import kind_of, no_dataset
from data_shards.remote import (
    CacheSettings,
    Count,
    RemoteFile,
    fetch_tables,
    file_system,
    ignore,
    is_remote,
    plain_name,
    verify_remote,
)
from data_shards.samples import read_samples
from data_shards.settings import InputError
from data_shards.shard_files import LocalShards, RemoteShards, ShardFiles
from data_shards.writer import MANIFEST_VERSION


class SampleError(ValueError):
    """A sample's bytes are not what was written: the message says which sample and file."""


@dataclass(frozen=True)
class ShardDataset:
    """A dataset's samples by number: [n] arrays say where each lies and whom it shows."""

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
        length. `count` hears what the cache does. Raises InputError naming the file and the remedy.
        Hashes are checked by `verify`, and of remote shards when they are fetched.
        """
        if is_remote(location):
            return cls._open_remote(str(location).rstrip("/"), cache or CacheSettings(), count)
        folder = Path(str(location).removeprefix("file://"))
        manifest = cls._manifest(folder)
        for name, facts in manifest["files"].items():
            _check_length(folder / name, facts["bytes"])
        names = manifest["shards"]
        files = LocalShards(folder, names)
        return cls(str(folder), folder, manifest, files, **cls._columns(folder, manifest))

    @classmethod
    def _open_remote(cls, url: str, settings: CacheSettings, count: Count) -> "ShardDataset":
        folder = fetch_tables(url, settings)
        manifest = cls._manifest(folder)
        system, root = file_system(url)
        facts = [(plain_name(name, url), manifest["files"][name]) for name in manifest["shards"]]
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
            manifest = json.loads(path.read_text())
            version = manifest["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged: build the dataset again") from error
        if version != MANIFEST_VERSION:
            raise InputError(
                f"{path} has version {version}, this program reads {MANIFEST_VERSION}: "
                "build the dataset again"
            )
        return manifest

    @staticmethod
    def _columns(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
        """The columns of the samples table."""
        table = folder / "samples.parquet"
        if sha256(table) != manifest["files"]["samples.parquet"]["sha256"]:
            raise InputError(f"{table} was changed: restore it or build the dataset again")
        return read_samples(table)

    def __len__(self) -> int:
        return len(self.shard)

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever any file of the dataset does."""
        return fingerprint(self.manifest)

    @cached_property
    def names(self) -> NDArray[np.object_]:
        """The identities' names ([number of identities]), by id."""
        names = pq.read_table(self.folder / "identities.parquet")["name"]
        return names.to_numpy(zero_copy_only=False)

    @cached_property
    def key_hashes(self) -> NDArray[np.uint64]:
        """[n] `key_hash` of each sample's key. Raises InputError when they are not there."""
        path = self.folder / "keys.parquet"
        if path.name not in self.manifest["files"]:
            raise InputError(f"{self.location} has no keys.parquet: build the dataset again")
        if sha256(path) != self.manifest["files"][path.name]["sha256"]:
            raise InputError(f"{path} was changed: restore it or build the dataset again")
        return pq.read_table(path)["key"].to_numpy()

    def keys(self, samples: NDArray[np.int64]) -> list[str]:
        """The sources' names of `samples` ([b]), from the shards, where each follows its image.

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
            return json.loads(view[start : start + member.size].tobytes())
        except (tarfile.HeaderError, ValueError) as error:
            where = self.files.name(shard)
            raise SampleError(f"what {where} tells of sample {sample} is damaged") from error

    def table(self, name: str) -> pa.Table:
        """An extra table that the source defined, such as "pairs"; sample numbers may be -1 where
        the image was refused. Raises InputError when there is none of that name, or it was changed.
        """
        held = self.manifest.get("tables", [])
        if name not in held:
            raise InputError(f"{self.location} has no table {name!r}; it has {held or 'none'}")
        path = self.folder / f"{name}.parquet"
        if sha256(path) != self.manifest["files"][path.name]["sha256"]:
            raise InputError(f"{path} was changed: restore it or build the dataset again")
        return pq.read_table(path)

    def image(self, sample: int) -> memoryview:
        """The encoded JPEG of a sample, straight from the memory-mapped shard.

        Raises SampleError when its checksum differs from the one taken when it was written.
        """
        (image,) = self.images(np.array([sample]))
        if image is None:
            where = f"byte {self.offset[sample]} of {self.files.name(int(self.shard[sample]))}"
            raise SampleError(f"sample {sample} at {where} is damaged")
        return image

    def images(self, samples: NDArray[np.int64]) -> list[memoryview | None]:
        """The encoded JPEGs of `samples` ([b]); None in place of a damaged one."""
        columns = (self.shard, self.offset, self.size, self.crc32)
        found: list[memoryview | None] = []
        for shard, start, size, crc in zip(*(c[samples].tolist() for c in columns), strict=True):
            view = self.files.view(shard)[start : start + size]
            found.append(view if zlib.crc32(view) == crc else None)
        return found

    def verify(
        self,
        progress: Callable[[int], None] = lambda done: None,
        fetching: CacheSettings | None = None,
    ) -> None:
        """Compares every file that is here with its sha256; `progress` hears the bytes done.

        Of a remote dataset these are its tables; with `fetching` it is every file, read where it
        lies. Raises InputError naming the first that differs.
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


def _check_length(path: Path, wanted: int) -> None:
    """Raises InputError unless a file is there at full length."""
    if not path.exists():
        raise InputError(f"{path} is missing: restore it or build the dataset again")
    if (found := path.stat().st_size) != wanted:
        raise InputError(
            f"{path} has {found} bytes instead of {wanted}: it is truncated or was changed; "
            "restore it or build the dataset again"
        )
