"""The interface of test set protocols, and helpers that they share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_shards.settings import InputError
from data_shards.sources import ROLES
from data_shards.storage.dataset import ShardDataset
from trainer.evaluation.vectors import StoredVectors

Ids = NDArray[np.int64]
Spread = Callable[[Sequence[tuple[Any, ...]]], list[Any]]
"""Calls each (function, *arguments), in any process, and returns the results in order."""
DEPTH = 50
"""Ranks that CMC curves reach."""


class TestSetProtocol(Protocol):
    """A test set under its protocol.

    It is opened before training, so that a missing table or role is an InputError at once.
    """

    normalised: bool
    """Whether the protocol compares embeddings of length 1."""

    def samples(self) -> dict[str, Ids]:
        """The samples to embed, ascending, of each dataset: "dataset" and, maybe, "distractors"."""
        ...

    def measure(self, vectors: Mapping[str, StoredVectors], spread: Spread) -> dict[str, Any]:
        """The results, given the embeddings of `samples`, as evaluation.json holds them."""
        ...


def with_role(dataset: ShardDataset, role: str) -> Ids:
    """The samples of a role, ascending. Raises InputError when there are none."""
    samples = np.flatnonzero(dataset.role == ROLES.index(role))
    if not len(samples):
        raise InputError(
            f"{dataset.location} has no image with role {role}: `perennial shards split` draws "
            "queries and gallery, and a folder is given roles at import (roles=folders)"
        )
    return samples


def searched(dataset: ShardDataset) -> tuple[Ids, Ids]:
    """The gallery of retrieval, ascending, and the identity of each of its images: [g], [g].

    Images with role distractor belong to it (Market-1501's identity 0000). No query matches them,
    so each gets an identity of its own, numbered behind the dataset's. Raises InputError when no
    image has role gallery.
    """
    with_role(dataset, "gallery")
    apart = dataset.role == ROLES.index("distractor")
    samples = np.flatnonzero(apart | (dataset.role == ROLES.index("gallery")))
    nobody = len(dataset.names) + samples
    return samples, np.where(apart[samples], nobody, dataset.identity[samples])


def columns(table: pa.Table, *names: str) -> list[NDArray[Any]]:
    """Columns of a table as arrays. Raises InputError when one is missing."""
    for name in names:
        if name not in table.column_names:
            raise InputError(f"a table of the dataset has no column {name}: import it again")
    return [table[name].to_numpy() for name in names]
