"""Two datasets read as one: a learning step's images, and the exemplars kept of earlier ones."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_shards.files import fingerprint
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings
from data_shards.storage.shard_files import ShardFiles


@dataclass(frozen=True)
class _JoinedFiles:
    """The shards of one dataset, followed by those of another."""

    first: ShardFiles
    second: ShardFiles
    count: int
    """How many shards the first has."""

    def _at(self, shard: int) -> tuple[ShardFiles, int]:
        return (self.first, shard) if shard < self.count else (self.second, shard - self.count)

    def view(self, shard: int) -> memoryview:
        files, number = self._at(shard)
        return files.view(number)

    def name(self, shard: int) -> str:
        files, number = self._at(shard)
        return files.name(number)

    def need(self, shards: NDArray[np.int64]) -> None:
        # the second one's shards are few and local: they are held anyway
        own = shards[shards < self.count]
        if len(own) or not len(shards):  # empty says that any may be needed
            self.first.need(own)

    def rest(self) -> None:
        self.first.rest()
        self.second.rest()


@dataclass(frozen=True)
class JoinedDataset(ShardDataset):
    """See `joined`."""

    parts: tuple[ShardDataset, ShardDataset]

    @property
    def names(self) -> NDArray[np.object_]:
        """The identities' names, by id: the first part's, then what only the second has."""
        first, second = (part.names for part in self.parts)
        return np.concatenate([first, second[~_known(second, first)]])

    @property
    def fingerprint(self) -> str:
        """Of both parts."""
        return fingerprint([part.fingerprint for part in self.parts])

    @property
    def key_hashes(self) -> NDArray[np.uint64]:
        return np.concatenate([part.key_hashes for part in self.parts])

    def table(self, name: str) -> pa.Table:
        return self.parts[0].table(name)

    def verify(
        self,
        progress: Callable[[int], None] = lambda done: None,
        fetching: CacheSettings | None = None,
    ) -> None:
        for part in self.parts:
            part.verify(progress, fetching)


def joined(first: ShardDataset, second: ShardDataset) -> JoinedDataset:
    """The samples of `first`, and behind them those of `second`, which is small and local.

    Samples, shards and cameras are numbered on; an identity of both, by name, is one.
    """
    known = _known(second.names, first.names)
    of_second = np.empty(len(second.names), dtype=np.int64)
    of_second[~known] = len(first.names) + np.arange(np.count_nonzero(~known))
    number = {name: i for i, name in enumerate(first.names.tolist())}
    of_second[known] = [number[name] for name in second.names[known].tolist()]
    sizes = [part.manifest["image_size"] for part in (first, second)]
    cameras = [*first.manifest["cameras"], *second.manifest["cameras"]]
    shards = [*first.manifest["shards"], *second.manifest["shards"]]
    manifest = {
        **first.manifest,
        "image_size": sizes[0] if sizes[0] == sizes[1] else None,
        "samples": len(first) + len(second),
        "identities": len(first.names) + int(np.count_nonzero(~known)),
        "cameras": cameras,
        "shards": shards,
    }
    count = len(first.manifest["shards"])
    return JoinedDataset(
        location=first.location,
        folder=first.folder,
        manifest=manifest,
        files=_JoinedFiles(first.files, second.files, count),
        shard=np.concatenate([first.shard, second.shard + np.int32(count)]),
        offset=np.concatenate([first.offset, second.offset]),
        size=np.concatenate([first.size, second.size]),
        identity=np.concatenate([first.identity, of_second[second.identity]]),
        camera=np.concatenate(
            [first.camera, second.camera + np.int32(len(first.manifest["cameras"]))]
        ),
        role=np.concatenate([first.role, second.role]),
        crc32=np.concatenate([first.crc32, second.crc32]),
        parts=(first, second),
    )


def _known(names: NDArray[np.object_], among: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which of `names` are `among` others: [n]."""
    held = set(among.tolist())
    return np.array([name in held for name in names.tolist()], dtype=bool)
