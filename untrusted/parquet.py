"""Reads untrusted Parquet: what its footer promises is checked before anything is decoded.

A footer may promise anything: run-length encoding makes a billion rows of a few bytes. So the rows
are bounded by the caller, and the bytes by the size of the file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from untrusted.files import open_regular

Kind = Callable[[pa.DataType], bool]
"""A test of a column's type, such as `pyarrow.types.is_integer`."""
_GROWTH, _FREE = 64, 1 << 26
"""Decoded bytes that each byte of the file may promise, and those that any file may beside."""
_FOOTER_ITEMS = 20_000
_BATCH = 1 << 16


class Malformed(ValueError):
    """A file that is no Parquet, or lacks the expected columns, types or sizes."""


def read_batches(
    path: Path, columns: Mapping[str, pa.DataType | Kind], rows: int | None, most: int
) -> Iterator[pa.RecordBatch]:
    """Reads a regular file in batches of at most 65,536 rows, only `columns`, which have no nulls.

    The file must have `rows` rows, if that is given, and at most `most`. Raises OSError and
    Malformed, and does so before reading any row where the footer shows the fault.
    """
    with _opened(path, list(columns)) as file:
        room = _FREE + _GROWTH * path.stat().st_size
        _check(file, room, columns, rows, most)
        left = file.metadata.num_rows
        for batch in file.iter_batches(_BATCH, columns=list(columns), use_threads=False):
            found = [_decoded(batch.column(name), name, room) for name in columns]
            room -= sum(column.nbytes for column in found if not _fixed(column.type))
            left -= batch.num_rows
            yield pa.RecordBatch.from_arrays(found, list(columns))
        if left:  # a damaged page may end the file without a word
            raise Malformed(f"{left:,} of its rows are not there")


def read_table(
    path: Path, columns: Mapping[str, pa.DataType | Kind], rows: int | None, most: int
) -> pa.Table:
    """`read_batches` as one table."""
    batches = list(read_batches(path, columns, rows, most))
    if batches:
        return pa.Table.from_batches(batches)
    with _opened(path) as file:
        return file.schema_arrow.empty_table().select(list(columns))


def written_beside(path: Path) -> Mapping[bytes, bytes]:
    """The writer's metadata in a file's footer. Raises OSError and Malformed."""
    with _opened(path) as file:
        return dict(file.schema_arrow.metadata or {})


def column_names(path: Path) -> list[str]:
    """The columns of a file. Raises OSError and Malformed."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


def _fixed(kind: pa.DataType) -> bool:
    return not (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _decoded(column: pa.Array, name: str, room: int) -> pa.Array:
    """Decodes a column. Raises Malformed for nulls, and for texts of more than `room` bytes.

    Texts are read as a dictionary and its indices, so that a long text in every row is refused
    before it is copied a million times.
    """
    if column.null_count:
        raise Malformed(f"column {name} has empty places")
    if not pa.types.is_dictionary(column.type):
        return column
    column.dictionary.validate(full=True)  # that it is UTF-8
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    if (pc.sum(lengths).as_py() or 0) > room:
        raise Malformed(f"column {name} is longer than such a file may be")
    return column.dictionary_decode()


@contextmanager
def _opened(path: Path, texts: Sequence[str] = ()) -> Iterator[pq.ParquetFile]:
    try:
        with (
            open_regular(path) as source,
            pq.ParquetFile(
                source,
                pre_buffer=False,
                read_dictionary=list(texts),
                thrift_container_size_limit=_FOOTER_ITEMS,
                arrow_extensions_enabled=False,
            ) as file,
        ):
            yield file
    except (pa.ArrowException, UnicodeDecodeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Malformed(f"it cannot be read: {first[:200]}") from error


def _check(
    file: pq.ParquetFile,
    room: int,
    columns: Mapping[str, pa.DataType | Kind],
    rows: int | None,
    most: int,
) -> None:
    """Raises Malformed if the footer does not promise the expected columns, rows and bytes."""
    found, schema = file.metadata, file.schema_arrow
    for name, wanted in columns.items():
        if schema.names.count(name) != 1:
            raise Malformed(f"it has not one column {name}")
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (kind == wanted if isinstance(wanted, pa.DataType) else wanted(kind)):
            raise Malformed(f"column {name} is of type {kind}")
    if rows is not None and found.num_rows != rows:
        raise Malformed(f"it has {found.num_rows:,} rows instead of {rows:,}")
    if not 0 <= found.num_rows <= most:
        raise Malformed(f"it has {found.num_rows:,} rows where {most:,} are possible")
    groups = [found.row_group(number) for number in range(found.num_row_groups)]
    if sum(group.num_rows for group in groups) != found.num_rows:
        raise Malformed("its parts have other rows than it says")
    # not of each column: pyarrow ends the process where those facts are malformed
    promised = [group.total_byte_size for group in groups]
    if any(size < 0 for size in promised) or sum(promised) > room:
        raise Malformed("it promises far more than it can hold")
