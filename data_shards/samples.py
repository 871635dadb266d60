"""The samples table: one row a sample, read into numpy columns without a second copy."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

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


def read_samples(path: Path) -> dict[str, NDArray[Any]]:
    """The columns [n] of the table, 33 bytes a sample in all."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        rows = file.metadata.num_rows
        columns = {field.name: np.empty(rows, field.type.to_pandas_dtype()) for field in ROWS}
        start = 0
        for batch in file.iter_batches(1 << 16, columns=ROWS.names):
            for name, column in columns.items():
                column[start : start + len(batch)] = batch.column(name).to_numpy()
            start += len(batch)
    pa.default_memory_pool().release_unused()
    return columns
