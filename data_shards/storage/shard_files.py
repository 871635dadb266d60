"""A dataset's shards as memory: mapped where they lie, or from copies in the cache."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_shards.settings import InputError
from data_shards.storage.cache import Cache, release
from data_shards.storage.remote import RemoteFile

_SPARE = 2  # shards kept mapped that are not needed; they are not locked, and may be evicted


class ShardFiles(Protocol):
    """The shards of a dataset, by number."""

    def view(self, shard: int) -> memoryview:
        """The bytes of a shard. Raises InputError when they cannot be had."""

    def name(self, shard: int) -> str:
        """The path or URL of a shard."""

    def need(self, shards: NDArray[np.int64]) -> None:
        """Announces the shards needed from now on, in order of use; empty: any may be."""

    def rest(self) -> None:
        """Gives up all shards: none will be asked for soon."""


def _mapped(path: Path) -> memoryview:
    """A file's content. Arrow's maps, unlike Python's, hold no file descriptor."""
    with pa.memory_map(str(path)) as file:
        return memoryview(file.read_buffer()).cast("B")


class LocalShards:
    """Shards in a folder."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._paths = [folder / name for name in names]
        self._views: list[memoryview | None] = [None] * len(names)

    def view(self, shard: int) -> memoryview:
        """The bytes of a shard."""
        found = self._views[shard]
        if found is None:
            found = self._views[shard] = _mapped(self._paths[shard])
        return found

    def name(self, shard: int) -> str:
        """The path of a shard."""
        return str(self._paths[shard])

    def need(self, shards: NDArray[np.int64]) -> None:
        """Nothing to do: all shards are local."""

    def rest(self) -> None:
        """Gives the maps up; they come back when they are asked for."""
        self._views = [None] * len(self._paths)


class RemoteShards:
    """Copies of remote shards, fetched on access, or ahead if announced by `need`.

    Needed shards are locked in the cache; others stay mapped but may be evicted, so that idle
    processes do not keep room from training.
    """

    def __init__(self, files: Sequence[RemoteFile], cache: Cache) -> None:
        self._files, self._cache = files, cache
        self._held: OrderedDict[int, tuple[BinaryIO | None, memoryview]] = OrderedDict()
        self._needed: tuple[int, ...] = ()
        self._lock = threading.Lock()

    def view(self, shard: int, roomed: Callable[[], None] = lambda: None) -> memoryview:
        """The bytes of a shard; they stay readable after the copy is evicted."""
        with self._lock:
            if shard in self._held:
                self._held.move_to_end(shard)
                return self._held[shard][1]
        file = self._cache.open(self._files[shard], roomed)
        view = _mapped(Path(file.name))
        with self._lock:
            lock = file if shard in self._needed and shard not in self._held else None
            self._held.setdefault(shard, (lock, view))
            others = [held for held in self._held if held not in self._needed]
            for other in others[:-_SPARE]:
                del self._held[other]
        if lock is None:
            release(file)
        return view

    def name(self, shard: int) -> str:
        """The URL's path of a shard."""
        return self._files[shard].path

    def need(self, shards: NDArray[np.int64]) -> None:
        """Fetches `shards` ahead, in order, and unlocks all others; empty: all are needed.

        Raises InputError when the cache cannot hold them.
        """
        wanted = tuple(shards.tolist()) or tuple(range(len(self._files)))
        if wanted == self._needed:
            return
        sizes = [file.bytes for file in self._files]
        # refused here, rather than waiting in vain for room
        room = sum(sizes[shard] for shard in set(wanted))
        if len(wanted) < len(self._files):  # processes are not all at the same place
            room += max(_SPARE, len(wanted) // 2) * max(sizes)
        if room > (limit := self._cache.settings.bytes):
            every = len(wanted) == len(self._files)
            raise InputError(
                f"data.cache.bytes = {limit:,} cannot hold the {len(set(wanted))} shards that the "
                f"order needs at a time ({room:,} bytes): raise it, "
                + (
                    "copy the dataset to a disk (perennial shards merge URL --out DIR), or use "
                    "data.order.kind=blocks"
                    if every
                    else "or lower data.order.window"
                )
            )
        self._keep(wanted)
        arguments = (iter(wanted), wanted, threading.Lock())
        for _ in range(self._cache.settings.parallel):
            threading.Thread(target=self._fetch_ahead, args=arguments, daemon=True).start()

    def rest(self) -> None:
        """Gives all copies up, so that they may be evicted."""
        self._keep(())

    def _keep(self, wanted: tuple[int, ...]) -> None:
        """Locks `wanted` from now on, and gives up what is held beside them."""
        with self._lock:
            self._needed = wanted
            for shard, (lock, _) in list(self._held.items()):
                if lock is None or shard not in wanted:
                    del self._held[shard]
                    if lock is not None:
                        release(lock)

    def _fetch_ahead(
        self, ahead: Iterator[int], wanted: tuple[int, ...], turn: threading.Lock
    ) -> None:
        """Fetches in parallel, but takes room in turn.

        If a later shard could take the room of an earlier one, two processes could each hold what
        they need next, and wait for each other for what they need now.
        """
        while True:
            with ExitStack() as waiting:
                waiting.enter_context(turn)
                shard = next(ahead, None)
                if shard is None or self._needed != wanted:
                    return
                try:
                    self.view(shard, waiting.close)
                except InputError:
                    return  # whoever reads the shard meets the error itself
