"""What an unfinished dataset folder remembers of its finished shards, so that a killed import
goes on behind them: ``.import/``, deleted when the dataset is whole.

A shard's record is written after its tar is on disk. It holds the shard's rows of the samples
table and all that the next shard depends on, so the result does not depend on interruptions.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from data_shards.files import sha256, write_atomically, write_json
from data_shards.samples import ROWS
from data_shards.settings import InputError

JOURNAL_ROWS = ROWS.append(pa.field("key", pa.uint64()))
"""The samples table's, and the hash of each sample's key."""
_FACTS = b"perennial"


FOLDER = ".import"


def clear(out: Path) -> None:
    """Removes what an import needed on its way from a folder that holds a whole dataset."""
    for part in (*out.glob(".*.part"), *out.glob("*.tar.part")):
        part.unlink()
    shutil.rmtree(out / FOLDER, ignore_errors=True)


class ShardFacts(BaseModel):
    """What a finished shard adds to the dataset, beside its rows."""

    consumed: int
    """Items of the source up to the end of this shard."""
    last_key: str
    """The key of the last of them."""
    refused_bytes: int
    """Length of refused.jsonl then."""
    identities: list[str]
    """Names that came up first in this shard."""
    cameras: list[str]
    sizes: list[tuple[int, int]]
    """Heights and widths of its images: at most two, which is as good as many."""
    files: dict[str, dict[str, Any]]
    """Manifest entries of the tar and its index."""


class Journal:
    """The records of the finished shards of a dataset folder."""

    def __init__(self, out: Path, deciding: dict[str, Any]) -> None:
        """Opens or begins the journal of `out`; `deciding` is all that decides the result.

        Raises InputError when the folder holds a dataset or the beginning of another one, or
        another process is writing it.
        """
        self.out, self.folder = out, out / FOLDER
        if (out / "manifest.json").exists():
            clear(out)
            raise InputError(f"{out} already holds a dataset: delete it or write elsewhere")
        path = self.folder / "source.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{out} is being written by another process: wait for it") from error
        if path.exists() and json.loads(path.read_text()) != json.loads(json.dumps(deciding)):
            raise InputError(
                f"{out} holds the beginning of another import (see {path}): give the same source "
                "and options to go on with it, or delete the folder"
            )
        write_json(path, deciding)
        self.shards: list[ShardFacts] = []
        while (record := self._record(len(self.shards))).exists():
            facts = self._facts(record)
            if not all(
                (out / name).exists() and sha256(out / name) == entry["sha256"]
                for name, entry in facts.files.items()
            ):
                break  # written anew, and everything behind it
            self.shards.append(facts)

    def _record(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.parquet"

    @staticmethod
    def _facts(record: Path) -> ShardFacts:
        return ShardFacts.model_validate_json(pq.read_schema(record).metadata[_FACTS])

    def add(self, rows: pa.Table, facts: ShardFacts) -> None:
        """Records that the next shard is on disk."""
        sink = pa.BufferOutputStream()
        kept = {_FACTS: facts.model_dump_json().encode()}
        pq.write_table(rows.replace_schema_metadata(kept), sink)
        write_atomically(self._record(len(self.shards)), sink.getvalue().to_pybytes())
        self.shards.append(facts)

    def rows(self) -> Iterator[pa.Table]:
        """The rows of one finished shard after the other, with the hashes of their keys."""
        for shard in range(len(self.shards)):
            yield pq.ParquetFile(self._record(shard)).read().replace_schema_metadata(None)

    def delete(self) -> None:
        """The dataset is whole."""
        clear(self.out)
        self.close()

    def close(self) -> None:
        """Lets another process write here."""
        self._lock.close()
