"""Puts a source's items one after the other into shards, or into the list of refusals."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from data_shards.files import printable
from data_shards.images import Checked, ImageSettings, Unfit, normalise_all
from data_shards.settings import InputError
from data_shards.sources import ROLES, Refusal, SourceImage
from data_shards.storage.keys import TakenKeys, key_hash
from data_shards.storage.tars import ShardFile
from data_shards.writing.journal import JOURNAL_ROWS, Journal, ShardFacts
from untrusted.files import no_link

SHARD_BYTES = 1 << 29
"""A shard is closed at this size, bytes, if it does not reach its number of samples before."""
_CHUNK, _CHUNK_BYTES = 128, 1 << 22

Item = SourceImage | Refusal


class _Numbering:
    """Numbers names from 0 in the order of their first occurrence."""

    def __init__(self, names: Iterable[str]) -> None:
        self.numbers = {name: number for number, name in enumerate(names)}
        self.new: list[str] = []

    def __getitem__(self, name: str) -> int:
        number = self.numbers.get(name)
        if number is None:
            number = self.numbers[name] = len(self.numbers)
            self.new.append(name)
        return number

    def take_new(self) -> list[str]:
        """The names numbered since the last call."""
        new, self.new = self.new, []
        return new


def chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    """`items` in lists long enough to be sent to another process, and bounded in bytes."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item.image) if isinstance(item, SourceImage) else 0
        if len(chunk) == _CHUNK or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def checked(chunk: list[Item], settings: ImageSettings) -> list[Checked | Unfit]:
    """`normalise` of the chunk's images: a unit of work for another process."""
    images = [item.image for item in chunk if isinstance(item, SourceImage)]
    return normalise_all(images, settings)


def _unfit_names(item: SourceImage) -> Unfit | None:
    try:
        "".join((item.identity, item.camera, item.key)).encode()
    except UnicodeEncodeError:
        return Unfit("name", "its name is not valid UTF-8")
    return None if item.identity else Unfit("name", "it names no identity")


def _open_at(path: Path, length: int) -> BinaryIO:
    """Opens a file to append behind its first `length` bytes, and truncates it to these.

    Raises InputError when it is shorter.
    """
    file = open(path, "ab", opener=no_link)  # noqa: SIM115
    if file.seek(0, os.SEEK_END) < length:
        raise InputError(f"{path} is not as it was left: restore it, or import into another folder")
    file.truncate(length)
    file.seek(0, os.SEEK_END)
    return file


class Intake:
    """The dataset being written: numbering, keys, the current shard and the list of refusals."""

    def __init__(self, journal: Journal, shard_samples: int) -> None:
        self.journal, self.shard_samples = journal, shard_samples
        done = journal.shards
        self.identities = _Numbering(name for shard in done for name in shard.identities)
        self.cameras = _Numbering(name for shard in done for name in shard.cameras)
        self.keys = TakenKeys(rows["key"].to_numpy() for rows in journal.rows())
        self.samples = sum(rows.num_rows for rows in journal.rows())
        self.consumed = done[-1].consumed if done else 0
        self.refused = _open_at(
            journal.out / "refused.jsonl", done[-1].refused_bytes if done else 0
        )
        self._begin()

    def _begin(self) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.sizes: set[tuple[int, int]] = set()
        self.shard: ShardFile | None = None

    def refuse(self, key: str, identity: str, reason: str, why: str, counts: bool = True) -> None:
        """Writes a line of refused.jsonl."""
        line = {"key": key, "identity": identity, "reason": reason, "why": why}
        if not counts:
            line["counts"] = False  # type: ignore[assignment]
        self.refused.write(printable(json.dumps(line, ensure_ascii=False)).encode() + b"\n")

    def take(self, item: SourceImage, image: Checked) -> None:
        """Appends an accepted image; closes the shard when it is full."""
        shards = len(self.journal.shards)
        if self.shard is None:
            self.shard = ShardFile(self.journal.out / f"shard-{shards:05d}.tar")
        jpeg = item.image if image.jpeg is None else image.jpeg
        identity, camera = self.identities[item.identity], self.cameras[item.camera]
        meta = {"camera": item.camera, "identity": item.identity, "key": item.key}
        number = f"{self.samples + len(self.rows):09d}"
        offset = self.shard.add(number, str(identity).encode(), jpeg, json.dumps(meta).encode())
        role, key = ROLES.index(item.role), key_hash(item.key)
        row = (shards, offset, len(jpeg), identity, camera, role, image.crc32, key)
        self.rows.append(row)
        if len(self.sizes) < 2:
            self.sizes.add((image.height, image.width))
        if len(self.rows) == self.shard_samples or self.shard.bytes >= SHARD_BYTES:
            self.close(item.key)

    def finish(self, last_key: str) -> None:
        """Finishes the last shard, at the end of the source; its last item has key `last_key`."""
        self.close(last_key)
        self.refused.close()

    def close(self, last_key: str) -> None:
        """Finishes the current shard, if there is one."""
        if self.shard is None:
            return
        files = self.shard.close()
        # on disk before the record that holds its length, to which a resumed import cuts it
        self.refused.flush()
        os.fsync(self.refused.fileno())
        columns = zip(JOURNAL_ROWS, zip(*self.rows, strict=True), strict=True)
        table = pa.table([pa.array(c, f.type) for f, c in columns], schema=JOURNAL_ROWS)
        self.journal.add(
            table,
            ShardFacts(
                consumed=self.consumed,
                last_key=printable(last_key),
                refused_bytes=self.refused.tell(),
                identities=self.identities.take_new(),
                cameras=self.cameras.take_new(),
                sizes=sorted(self.sizes),
                files=files,
            ),
        )
        self.samples += len(self.rows)
        self._begin()

    def add_chunk(self, chunk: list[Item], results: list[Checked | Unfit]) -> None:
        """Accepts or refuses a chunk's items, one after the other."""
        images = [item for item in chunk if isinstance(item, SourceImage)]
        hashes = [key_hash(printable(image.key)) for image in images]
        known = iter(self.keys.known(hashes).tolist())
        result, hashed = iter(results), iter(hashes)
        for item in chunk:
            self.consumed += 1
            if isinstance(item, Refusal):
                self.refuse(*item)
                continue
            image, taken, key = next(result), next(known), next(hashed)
            found = _unfit_names(item) or image
            if isinstance(found, Checked) and (taken or not self.keys.add(key)):
                found = Unfit("duplicate key", "another image of this source has the same key")
            if isinstance(found, Unfit):
                self.refuse(item.key, item.identity, *found)
            else:
                self.take(item, found)
        self.keys.merge_fresh()


def items_behind(read: Callable[[int], Iterable[Item]], journal: Journal) -> Iterator[Item]:
    """The items of a source that follow the finished shards.

    Reading starts at the last finished item: InputError is raised when it is another one now, as
    the source has then changed.
    """
    if not journal.shards:
        return iter(read(0))
    done = journal.shards[-1]
    items = iter(read(done.consumed - 1))
    last = next(items, None)
    if last is None or printable(last.key) != done.last_key:
        raise InputError(
            f"the source has changed since the import into {journal.place.name} was begun (item "
            f"{done.consumed} was {done.last_key!r}, now {last and last.key!r}): restore it, or "
            "import into another folder"
        )
    return items
