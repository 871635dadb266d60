"""Opens a dataset written by `data_shards.writer`: its tables, its hashes, any sample's bytes."""

import json
import mmap
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

from data_shards.files import fingerprint, sha256
from data_shards.settings import InputError
from data_shards.writer import MANIFEST_VERSION


class SampleError(ValueError):
    """A sample's bytes are not what was written: the message says which sample and file."""


@dataclass(frozen=True)
class ShardDataset:
    """A dataset's samples by number: [n] arrays say where each lies and whom it shows."""

    folder: Path
    manifest: dict[str, Any]
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    identity: NDArray[np.int64]
    camera: NDArray[np.int32]
    role: NDArray[np.int8]
    crc32: NDArray[np.uint32]

    @classmethod
    def open(cls, folder: Path) -> "ShardDataset":
        """Reads the manifest and the tables, and checks that every file is there at full length.

        Raises InputError naming the file and the remedy. Hashes are checked by `verify`.
        """
        path = folder / "manifest.json"
        if not path.exists():
            raise InputError(
                f"{folder} holds no dataset (no manifest.json): build one with "
                f"`perennial shards glyphs --out {folder}`"
            )
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
        for name, facts in manifest["files"].items():
            file = folder / name
            if not file.exists():
                raise InputError(f"{file} is missing: restore it or build the dataset again")
            if (found := file.stat().st_size) != facts["bytes"]:
                raise InputError(
                    f"{file} has {found} bytes instead of {facts['bytes']}: it is truncated or "
                    "was changed; restore it or build the dataset again"
                )
        table = folder / "samples.parquet"
        if sha256(table) != manifest["files"]["samples.parquet"]["sha256"]:
            raise InputError(f"{table} was changed: restore it or build the dataset again")
        columns = pq.read_table(table)
        return cls(folder, manifest, **{n: columns[n].to_numpy() for n in columns.column_names})

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

    def table(self, name: str) -> pa.Table:
        """An extra table that the source defined, such as "pairs"; sample numbers may be -1 where
        the image was refused. Raises InputError when there is none of that name, or it was changed.
        """
        held = self.manifest.get("tables", [])
        if name not in held:
            raise InputError(f"{self.folder} has no table {name!r}; it has {held or 'none'}")
        path = self.folder / f"{name}.parquet"
        if sha256(path) != self.manifest["files"][path.name]["sha256"]:
            raise InputError(f"{path} was changed: restore it or build the dataset again")
        return pq.read_table(path)

    @cached_property
    def _maps(self) -> list[Any]:
        return [None] * len(self.manifest["shards"])

    def image(self, sample: int) -> memoryview:
        """The encoded JPEG of a sample, straight from the memory-mapped shard.

        Raises SampleError when its checksum differs from the one taken when it was written.
        """
        (image,) = self.images(np.array([sample]))
        if image is None:
            path = self.folder / self.manifest["shards"][self.shard[sample]]
            raise SampleError(f"sample {sample} at byte {self.offset[sample]} of {path} is damaged")
        return image

    def images(self, samples: NDArray[np.int64]) -> list[memoryview | None]:
        """The encoded JPEGs of `samples` ([b]); None in place of a damaged one."""
        columns = (self.shard, self.offset, self.size, self.crc32)
        found: list[memoryview | None] = []
        for shard, start, size, crc in zip(*(c[samples].tolist() for c in columns), strict=True):
            view = (self._maps[shard] or self._map(shard))[start : start + size]
            found.append(view if zlib.crc32(view) == crc else None)
        return found

    def _map(self, shard: int) -> memoryview:
        with (self.folder / self.manifest["shards"][shard]).open("rb") as file:
            self._maps[shard] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return self._maps[shard]

    def verify(self, progress: Callable[[int], None] = lambda done: None) -> None:
        """Compares every file with its sha256; `progress` hears the bytes done after each.

        Raises InputError naming the first file that differs.
        """
        done = 0
        for name, facts in self.manifest["files"].items():
            if sha256(self.folder / name) != facts["sha256"]:
                raise InputError(
                    f"{self.folder / name} does not match its sha256 in manifest.json: "
                    "restore it or build the dataset again"
                )
            progress(done := done + facts["bytes"])
