"""Identities that a model has learned before a run begins: they form its learning step 0."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset

Ids = NDArray[np.int64]
Names = NDArray[np.object_]


@dataclass(frozen=True)
class KnownIdentities:
    """The identities of a model's classifier rows, matched with a dataset's identities."""

    rows: tuple[int, ...]
    """(C,), the rows of the model; () where nothing is known before step 0."""
    names: Names
    """[C] the identity of each row."""
    row: Ids
    """[identities of the dataset] the model's row of each, or -1 where it has none."""

    @classmethod
    def of(cls, names: Sequence[str] | None, dataset: ShardDataset) -> "KnownIdentities":
        """Looks up `names`, the identities of a model's rows, in `dataset`; None: no model."""
        held = pa.array(dataset.names, pa.string())
        found = pc.index_in(held, value_set=pa.array(names or [], pa.string()))
        rows = () if names is None else (len(names),)
        row = found.fill_null(-1).to_numpy().astype(np.int64)
        return cls(rows, np.array(names or [], dtype=np.object_), row)

    @property
    def count(self) -> int:
        """C, the number of known identities; 0 without a model."""
        return len(self.names)

    def before(self, rows: Sequence[int]) -> tuple[int, ...]:
        """The rows after each learning step, when those of `rows` follow the known ones."""
        return *self.rows, *(self.count + last for last in rows)

    def with_new(self, row: Ids) -> Ids:
        """[identities of the dataset] the row of each: a known one, or `row` behind these."""
        return np.where(row >= 0, self.count + row, self.row)

    def refuse(self, identities: Ids, dataset: ShardDataset, what: str) -> None:
        """Raises InputError when any of `identities` of `dataset` is known."""
        if len(twice := identities[self.row[identities] >= 0]):
            raise InputError(
                f"{what} {dataset.names[twice[0]]!r}, one of {len(twice):,} identities that the "
                "model of `continues` has learned: leave them out"
            )
