"""A table or collection of a vector database: what is the same in all of them.

It may hold several datasets, and vectors of one model; of two while `perennial backfill` replaces
them. Which, is asked of the rows, each of which names its dataset and its model.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from data_shards.files import fingerprint
from data_shards.settings import InputError
from launch.models.sinks.interface import Ids, Made, Rows, other_vectors
from launch.models.work_folder import locked
from trainer.gallery import Vectors


class Table(Protocol):
    """An open connection to a table or collection."""

    def dimension(self) -> int | None:
        """d, the length of its vectors; none: it does not exist.

        Raises InputError for one that was not made by this product.
        """

    def create(self, dimension: int) -> None:
        """Makes it, empty."""

    def models(self) -> list[str]:
        """The models whose vectors it holds, by their fingerprints, ascending."""

    def rows(self, dataset: str, model: str) -> int:
        """The number of vectors of a dataset by a model."""

    def vectors(self, dataset: str, model: str) -> Iterator[tuple[Ids, Vectors]]:
        """Samples [n], ascending within a part, and their vectors [n, d]."""

    def put(self, dataset: str, model: str, rows: Rows) -> None:
        """Adds rows; such as are there already are replaced."""

    def replace(self, dataset: str, model: str, parts: Iterable[Rows]) -> None:
        """Replaces vectors and names of models of rows that are there; others are not added."""

    def describe(self, text: str, models: list[str]) -> None:
        """Says of the table itself whose vectors it holds."""


@dataclass(frozen=True)
class _HeldRows:
    """Vectors of a dataset in a table; see `trainer.gallery.Held`."""

    table: Table
    dataset: str
    fingerprint: str
    """The place's name: to replace vectors twice is harmless there."""

    def rows(self, model: str) -> int:
        return self.table.rows(self.dataset, model)

    def others(self, model: str) -> list[str]:
        return [name for name in self.table.models() if name != model]

    def vectors(self, model: str, count: int | None = None) -> Iterator[tuple[Ids, Vectors]]:
        for samples, vectors in self.table.vectors(self.dataset, model):
            if (
                count is not None
                and len(samples)
                and not 0 <= samples.min() <= samples.max() < count
            ):
                raise InputError("the database holds vectors of samples that are not there")
            yield samples, vectors


@dataclass(frozen=True)
class Database:
    """A `Store`: a table or collection, wherever `connect` finds it."""

    place: str
    connect: Callable[[], AbstractContextManager[Table]]

    @property
    def work(self) -> Path:
        return Path(f".embedding-{fingerprint(self.place)}")

    @property
    def upgrade(self) -> Path:
        return Path(f".upgrade-{fingerprint(self.place)}") / "vectors"

    def holds(self, plan: dict[str, Any]) -> bool:
        with self.connect() as table:
            if table.dimension() is None:
                return False
            self._refuse_others(table, plan["model"])
            return table.rows(plan["dataset"], plan["model"]) == plan["rows"]

    def publish(self, made: Made) -> None:
        with self.connect() as table:
            if (dimension := table.dimension()) is None:
                table.create(made.dimension)
                for file in made.files.values():  # to one that was dropped since
                    file.with_suffix(".sent").unlink(missing_ok=True)
            else:
                self._refuse_others(table, made.model)  # anew: it took a while to embed
                self._check_length(dimension, made.dimension)
            for file, rows in made.parts():
                # what was sent before a kill need not be sent again
                sent = file.with_suffix(".sent")
                if not sent.exists():
                    table.put(made.plan["dataset"], made.model, rows)
                    sent.touch()
            self._describe(table, made.dimension)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with locked(self.upgrade.parent):
            try:
                yield
            finally:
                (self.upgrade.parent / ".lock").unlink()
                with suppress(OSError):  # an upgrade is unfinished, and the folder not empty
                    self.upgrade.parent.rmdir()

    @contextmanager
    def held(self, dataset: str, dimension: int) -> Iterator[_HeldRows]:
        with self.connect() as table:
            held, own = _HeldRows(table, dataset, self.place), table.dimension()
            if own is None or not any(map(held.rows, table.models())):
                raise InputError(
                    f"{self.place} holds no vectors of dataset {dataset}: give the --shards that "
                    "they were made of, or store them by `perennial embed`"
                )
            self._check_length(own, dimension)
            yield held

    def replace(self, made: Made) -> None:
        with self.connect() as table:
            table.replace(made.plan["dataset"], made.model, (rows for _, rows in made.parts()))
            self._describe(table, made.dimension)

    def _refuse_others(self, table: Table, model: str) -> None:
        if others := [name for name in table.models() if name != model]:
            raise other_vectors(self.place, others)

    def _check_length(self, own: int, dimension: int) -> None:
        if own != dimension:
            raise InputError(
                f"{self.place} holds vectors of {own:,} numbers, and the model gives "
                f"{dimension:,}: embed into another one"
            )

    def _describe(self, table: Table, dimension: int) -> None:
        models = table.models()
        table.describe(
            f"perennial: vectors of {dimension} numbers, not of unit length, by model "
            f"{' and '.join(models)}",
            models,
        )
