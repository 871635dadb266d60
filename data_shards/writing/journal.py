"""The journal of an import, ``.import/``: records of finished shards, from which an interrupted
import resumes. It is deleted when the dataset is complete.

A shard's record is written after its tar is on disk. It holds the shard's rows of the samples
table and all that the next shard depends on, so the result does not depend on interruptions.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel

from data_shards.files import write_atomically, write_json
from data_shards.settings import InputError
from data_shards.storage.manifest import Name, check_facts
from data_shards.storage.samples import ROWS
from data_shards.writing.destination import FOLDER, Destination
from untrusted.files import no_link, read_bytes
from untrusted.json_text import parse_json
from untrusted.parquet import read_table, written_beside

JOURNAL_ROWS = ROWS.append(pa.field("key", pa.uint64()))
"""The samples table's columns, and the hash of each sample's key."""
_FACTS = b"perennial"
_BYTES = 1 << 26


class ShardFacts(BaseModel):
    """What a finished shard adds to the dataset, beside its rows."""

    consumed: int
    """Number of the source's items read up to the end of this shard."""
    last_key: str
    """The key of the last of them."""
    refused_bytes: int
    """Length of refused.jsonl at the end of this shard."""
    identities: list[str]
    """Names that occur in this shard first."""
    cameras: list[str]
    sizes: list[tuple[int, int]]
    """Heights and widths of its images: at most two, which suffice to show that they differ."""
    files: dict[Name, Annotated[dict[str, Any], AfterValidator(check_facts)]]
    """Manifest entries of the tar and its index."""


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is damaged: delete the folder that holds it and import again"
        ) from error


def _read(path: Path) -> Any:
    with _whole(path):
        return parse_json(read_bytes(path, _BYTES))


class Journal:
    """The records of the finished shards of a dataset being written."""

    def __init__(self, place: Destination, deciding: dict[str, Any]) -> None:
        """Opens or begins the journal of `place`; `deciding` holds all that the result depends on.

        Raises InputError when the place holds a dataset or the beginning of another one, or
        another process is writing it.
        """
        self.place, self.out, self.folder = place, place.folder, place.folder / FOLDER
        if place.manifest() is not None:
            place.forget_journal()
            raise InputError(f"{place.name} already holds a dataset: write elsewhere")
        path = self.folder / "source.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self.folder / "lock"
        self._lock = open(lock, "w", encoding="utf-8", opener=no_link)  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{place.name} is being written by another process: wait for it"
            ) from error
        try:
            self.shards = self._recalled(path, deciding)
        except BaseException:
            self.close()
            raise

    def _recalled(self, path: Path, deciding: dict[str, Any]) -> list[ShardFacts]:
        """The finished shards of an earlier attempt at the same import.

        Raises InputError for an attempt at another one.
        """
        self.place.recall()
        # before the first shard nothing is lost: another path may mend a typo in the first
        known = path.exists() and self._record(0).exists()
        if known and _read(path) != json.loads(json.dumps(deciding)):
            raise InputError(
                f"{self.place.name} holds the beginning of another import (see {path}): give "
                "the same source and options to go on with it, or write elsewhere"
            )
        write_json(path, deciding)
        self.place.remember(path.name)
        shards: list[ShardFacts] = []
        while (record := self._record(len(shards))).exists():
            facts = self._facts(record)
            if not all(self.place.holds(name, entry) for name, entry in facts.files.items()):
                break  # written anew, and everything behind it
            shards.append(facts)
        return shards

    def _record(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.parquet"

    @staticmethod
    def _facts(record: Path) -> ShardFacts:
        with _whole(record):
            return ShardFacts.model_validate_json(written_beside(record)[_FACTS])

    def add(self, rows: pa.Table, facts: ShardFacts) -> None:
        """Stores the next shard, which is on disk, and then its record."""
        # the record last: what it names must be stored before it
        for name, entry in facts.files.items():
            self.place.keep(name, entry["sha256"])
        self.place.remember("refused.jsonl")
        sink = pa.BufferOutputStream()
        kept = {_FACTS: facts.model_dump_json().encode()}
        pq.write_table(rows.replace_schema_metadata(kept), sink)
        record = self._record(len(self.shards))
        write_atomically(record, sink.getvalue().to_pybytes())
        self.place.remember(record.name)
        self.shards.append(facts)

    def rows(self) -> Iterator[pa.Table]:
        """Yields the rows of each finished shard, with the hashes of their keys."""
        for shard in range(len(self.shards)):
            record = self._record(shard)
            kinds = {field.name: field.type for field in JOURNAL_ROWS}
            with _whole(record):
                rows = read_table(record, kinds, None, record.stat().st_size)
            yield rows.replace_schema_metadata(None)

    def delete(self) -> None:
        """Deletes the journal and releases its lock: the dataset is complete."""
        self.place.forget_journal()
        self.close()

    def close(self) -> None:
        """Releases the lock, so that another process can write here."""
        self._lock.close()
