"""A table of PostgreSQL with the extension pgvector."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from data_shards.settings import InputError
from launch.models.sinks.database import Database
from launch.models.sinks.interface import Ids, Rows
from trainer.gallery import Vectors
from trainer.onnx_graphs import first_line
from trainer.packages import package

_COLUMNS = ("dataset", "sample", "key", "identity", "camera", "model", "vector")
_BATCH = 4096


def database(url: str) -> Database:
    """The table that ``postgresql://USER@HOST/DATABASE#TABLE`` names. Raises InputError."""
    psycopg = package("psycopg", "--out postgresql://", extra="pgvector")
    package("pgvector.psycopg", "--out postgresql://", extra="pgvector")
    where, _, name = url.partition("#")
    if not name:
        raise InputError("--out postgresql://HOST/DATABASE#TABLE: name a table behind #")
    try:
        facts = psycopg.conninfo.conninfo_to_dict(where)
    except psycopg.Error as error:
        raise InputError(f"--out is no address of PostgreSQL: {first_line(error)}") from error
    host = ":".join(str(facts[key]) for key in ("host", "port") if facts.get(key)) or "this machine"
    place = f"table {name} of database {facts.get('dbname', 'by default')} at {host}"
    return Database(place, partial(_connected, where, tuple(name.split(".")), place))


@contextmanager
def _connected(where: str, name: tuple[str, ...], place: str) -> "Iterator[_Table]":
    """A connection in one transaction for each `with`. Raises InputError."""
    psycopg = package("psycopg", place, extra="pgvector")
    try:
        with psycopg.connect(where, autocommit=True) as connection:
            yield _Table(connection, name, place)
    except psycopg.Error as error:
        raise InputError(f"{place}: {first_line(error)}") from error


@dataclass(frozen=True)
class _Table:
    """A `Table`. Each change is a transaction, and the table is locked against others' meanwhile,
    so that nobody adds another model's vectors; reading goes on."""

    connection: Any
    name: tuple[str, ...]
    """The table's, and before it the schema's if given."""
    place: str

    def _sql(self, text: str) -> Any:
        """`text` with the table's name, quoted, for each {}."""
        from psycopg import sql

        return sql.SQL(text.replace("{}", "{0}")).format(sql.Identifier(*self.name))

    def _do(self, text: str, *values: Any) -> Any:
        return self.connection.execute(self._sql(text), values)

    def dimension(self) -> int | None:
        quoted = self._sql("{}").as_string(self.connection)
        (found,) = self._do("SELECT to_regclass(%s)", quoted).fetchone()
        if found is None:
            return None
        columns = dict(
            self._do(
                "SELECT attname, atttypmod FROM pg_attribute WHERE attrelid = %s::regclass "
                "AND attnum > 0 AND NOT attisdropped",
                quoted,
            ).fetchall()
        )
        if not columns.keys() >= set(_COLUMNS):
            raise InputError(f"{self.place} was not made by this command: name another table")
        return int(columns["vector"])  # pgvector keeps a type's length there

    def create(self, dimension: int) -> None:
        with self.connection.transaction():
            self._do("CREATE EXTENSION IF NOT EXISTS vector")
            self._do(
                "CREATE TABLE {} (dataset text, sample bigint, key text NOT NULL, "
                "identity text NOT NULL, camera text NOT NULL, model text NOT NULL, "
                f"vector vector({dimension:d}) NOT NULL, PRIMARY KEY (dataset, sample))"
            )
            # for `models`, which is asked before each change
            self._do("CREATE INDEX ON {} (model)")

    def models(self) -> list[str]:
        found: list[str] = []
        # a look into the index for each, where DISTINCT would read all of the table
        while True:
            after = found[-1] if found else ""
            (least,) = self._do("SELECT min(model) FROM {} WHERE model > %s", after).fetchone()
            if least is None:
                return found
            found.append(least)

    def rows(self, dataset: str, model: str) -> int:
        text = "SELECT count(*) FROM {} WHERE dataset = %s AND model = %s"
        return int(self._do(text, dataset, model).fetchone()[0])

    def vectors(self, dataset: str, model: str) -> Iterator[tuple[Ids, Vectors]]:
        from pgvector.psycopg import register_vector

        register_vector(self.connection)
        text = "SELECT sample, vector FROM {} WHERE dataset = %s AND model = %s ORDER BY sample"
        with (
            self.connection.transaction(),
            self.connection.cursor("perennial", binary=True) as cursor,
        ):
            cursor.execute(self._sql(text), [dataset, model])
            while batch := cursor.fetchmany(_BATCH):
                samples = np.array([sample for sample, _ in batch], np.int64)
                yield samples, np.stack([vector.to_numpy() for _, vector in batch])

    def put(self, dataset: str, model: str, rows: Rows) -> None:
        texts = (rows.keys, rows.identities, rows.cameras)
        lines = (
            (dataset, int(sample), *map(_text, texts_), model, vector)
            for sample, *texts_, vector in zip(rows.samples, *texts, rows.vectors, strict=True)
        )
        with self._changing(model, allowed=0):
            self._copied(_COLUMNS, lines)
            columns = ", ".join(_COLUMNS)
            fresh = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS[2:])
            self._do(
                f"INSERT INTO {{}} ({columns}) SELECT {columns} FROM perennial_new "
                f"ON CONFLICT (dataset, sample) DO UPDATE SET {fresh}"
            )

    def replace(self, dataset: str, model: str, parts: Iterable[Rows]) -> None:
        """One transaction: searches see all of it, or none."""
        lines = (
            (int(sample), vector)
            for rows in parts
            for sample, vector in zip(rows.samples, rows.vectors, strict=True)
        )
        with self._changing(model, allowed=1):
            self._copied(("sample", "vector"), lines)
            self._do(
                "UPDATE {} AS stored SET vector = perennial_new.vector, model = %s FROM "
                "perennial_new WHERE stored.dataset = %s AND stored.sample = perennial_new.sample",
                model,
                dataset,
            )

    @contextmanager
    def _changing(self, model: str, allowed: int) -> Iterator[None]:
        """A transaction that alone changes the table; in it at most so many other models are
        `allowed`. Raises InputError."""
        from pgvector.psycopg import register_vector

        with self.connection.transaction():
            self._do("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE")
            others = [name for name in self.models() if name != model]
            if len(others) > allowed:
                raise InputError(
                    f"{self.place} has got vectors of model {' and '.join(others)} meanwhile: "
                    "upgrade them first by `perennial backfill`"
                )
            register_vector(self.connection)
            yield

    def _copied(self, columns: tuple[str, ...], lines: Iterable[tuple[Any, ...]]) -> None:
        """A temporary table ``perennial_new`` of these columns, until the transaction ends."""
        named = ", ".join(columns)
        self._do(
            f"CREATE TEMPORARY TABLE perennial_new ON COMMIT DROP AS SELECT {named} FROM {{}} "
            "LIMIT 0"
        )
        kinds = {"sample": "int8", "vector": "vector"}
        with (
            self.connection.cursor() as cursor,
            cursor.copy(f"COPY perennial_new ({named}) FROM STDIN (FORMAT BINARY)") as copy,
        ):
            copy.set_types([kinds.get(column, "text") for column in columns])
            for line in lines:
                copy.write_row(line)

    def describe(self, text: str, models: list[str]) -> None:
        from psycopg import sql

        # a comment takes no parameters
        self.connection.execute(self._sql("COMMENT ON TABLE {} IS ") + sql.Literal(text))


def _text(value: str) -> str:
    """`value` without the one character that PostgreSQL's texts cannot hold."""
    return value.replace("\0", "\\0")
