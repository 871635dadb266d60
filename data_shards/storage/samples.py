"""The samples table: one row a sample, read into numpy columns without a second copy."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.sources import ROLES
from untrusted.parquet import Malformed, read_batches

ROWS = pa.schema(
    [
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int32()),
        ("identity", pa.int64()),
        ("camera", pa.int32()),
        ("role", pa.int8()),
        ("crc32", pa.uint32()),
    ]
)
_ROW_GROUP = 1 << 20
_REPEATING = ["shard", "identity", "camera", "role"]


def write_samples(parts: Iterable[pa.Table], path: Path) -> None:
    """Writes tables that have the columns of `ROWS` as one, in row groups of a bounded size."""
    with pq.ParquetWriter(path, ROWS, use_dictionary=_REPEATING) as writer:
        pending: list[pa.Table] = []
        for rows in parts:
            pending.append(rows.select(ROWS.names))
            if sum(table.num_rows for table in pending) >= _ROW_GROUP:
                writer.write_table(pa.concat_tables(pending))
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending))


def read_samples(
    path: Path, rows: int, shards: Sequence[int], identities: int, cameras: int
) -> dict[str, NDArray[Any]]:
    """The columns [n] of the table, 33 bytes a sample in all.

    Checked are: `rows` rows, places within `shards` (bytes of each), identities below `identities`
    and cameras below `cameras`. Samples must follow each other without overlap, as the writer
    leaves them, so that a table cannot promise more samples than there are bytes. Raises OSError
    and Malformed.
    """
    most = path.stat().st_size  # a row has four bytes that nothing compresses
    kinds = {field.name: field.type for field in ROWS}
    batches = read_batches(path, kinds, rows, most)
    first = next(batches, None)  # only now is it known that `rows` are few enough
    columns = {field.name: np.empty(rows, field.type.to_pandas_dtype()) for field in ROWS}
    sizes = np.array(shards, dtype=np.int64)
    start, before = 0, (0, 0)
    for batch in chain([first] if first else [], batches):
        for name, column in columns.items():
            column[start : start + len(batch)] = batch.column(name).to_numpy()
        end = start + len(batch)
        part = {name: column[start:end] for name, column in columns.items()}
        before = _check(part, sizes, (identities, cameras), before)
        start = end
    if start != rows:
        raise Malformed(f"it has {start:,} rows instead of {rows:,}")
    pa.default_memory_pool().release_unused()
    return columns


def _check(
    rows: Mapping[str, NDArray[Any]],
    shards: NDArray[np.int64],
    counts: tuple[int, int],
    before: tuple[int, int],
) -> tuple[int, int]:
    """Checks `rows` and returns where the last of them ends, (shard, byte).

    `shards` are sizes in bytes, `counts` the numbers of identities and cameras, `before` is where
    the preceding rows end. Raises Malformed naming what is out of range.
    """
    limits = {"identity": counts[0], "camera": counts[1], "role": len(ROLES), "shard": len(shards)}
    for name, limit in limits.items():
        if (wrong := (rows[name] < 0) | (rows[name] >= limit)).any():
            raise Malformed(f"{name} {rows[name][wrong][0]} is none of {limit:,}")
    shard, offset, size = (rows[name].astype(np.int64) for name in ("shard", "offset", "size"))
    # the offset first: the sum of two numbers up to 2^63 may be negative
    room = shards[shard]
    if ((offset < 0) | (offset > room) | (size <= 0)).any() or (offset + size > room).any():
        raise Malformed("a sample lies outside of its shard")
    last_shard = np.concatenate([[before[0]], shard[:-1]])
    last_end = np.concatenate([[before[1]], (offset + size)[:-1]])
    if ((shard < last_shard) | ((shard == last_shard) & (offset < last_end))).any():
        raise Malformed("its samples do not follow each other")
    return int(shard[-1]), int(offset[-1] + size[-1])
