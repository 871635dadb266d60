"""Searches stored vectors for the nearest ones: which identities are these?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.settings import InputError
from launch.models.sinks.registry import FILES
from trainer.arrays import read_arrays, stored_model
from trainer.evaluation.compatibility.vectors import comparable
from trainer.gallery import Gallery
from untrusted.files import read_bytes
from untrusted.json_text import parse_json
from untrusted.text import tsv_cells
from untrusted.text_files import read_lines

Vectors = NDArray[np.float32]
_BLOCK = 1 << 16
"""Stored vectors that are compared with all queries at once."""
_CARD_BYTES = 1 << 20
_READ = (".npy", ".safetensors")


@dataclass(frozen=True)
class Match:
    """A stored vector that is near a query."""

    identity: str
    similarity: float
    """The cosine of the two vectors' angle."""
    key: str
    """The name of its image in the dataset that was embedded; empty where names were given."""
    row: int
    """Its place among the stored vectors, from 0."""


@dataclass(frozen=True)
class Stored:
    """Vectors of known images."""

    parts: tuple[tuple[NDArray[np.int64], Vectors], ...]
    """The rows [n] and the vectors [n, d] of each part; a part's d is its own."""
    identities: Sequence[str]
    """[g] of each row."""
    keys: Sequence[str]
    """[g], or none."""
    models: tuple[str, ...] = ()
    """Fingerprints of the models that made them, where that is known."""

    @classmethod
    def of(cls, vectors: Vectors, identities: Sequence[str]) -> "Stored":
        """Vectors [g, d] in memory. Raises InputError where there is not a name for each."""
        if vectors.ndim != 2 or len(identities) != len(vectors):
            raise InputError(
                f"{len(identities)} names for vectors of shape {vectors.shape}: give vectors "
                "[n, d] and a name for each"
            )
        return cls(((np.arange(len(vectors)), vectors),), identities, ())

    @classmethod
    def open(cls, path: Path) -> "Stored":
        """What `perennial embed` wrote to `path`. Raises InputError."""
        if path.suffix in FILES and path.suffix not in _READ:
            raise InputError(
                f"{path}: a {path.suffix} is searched by other programs: embed into a folder, or "
                f"into a file that ends in {' or '.join(_READ)}"
            )
        if path.suffix in _READ:
            keys, identities = _ids(path.with_suffix(".ids.tsv"))
            model, vectors = _flat(path)
            if len(vectors) != len(keys):
                raise InputError(f"{path} has {len(vectors)} vectors, {len(keys)} ids: embed anew")
            return cls(((np.arange(len(vectors)), vectors),), identities, keys, (model,))
        gallery = Gallery.open(path)
        keys, identities = _ids(path / "ids.tsv")
        models = tuple(name for name in gallery.dimensions if gallery.rows(name))
        parts = tuple(part for model in models for part in gallery.vectors(model, count=len(keys)))
        return cls(parts, identities, keys, models)

    def nearest(self, queries: Vectors, top: int) -> list[list[Match]]:
        """The `top` nearest rows of each query [q, d], the nearest first.

        Of vectors with different dimensions the leading elements are compared, see `comparable`.
        """
        asked = torch.from_numpy(queries)
        best = torch.full((len(asked), 0), 0.0)
        rows = torch.empty((len(asked), 0), dtype=torch.int64)
        for numbers, vectors in self._blocks():
            d = min(asked.shape[1], vectors.shape[1])
            found = comparable(asked, d, True) @ comparable(vectors, d, True).T
            best = torch.cat([best, found], dim=1)
            rows = torch.cat([rows, numbers.expand(len(asked), -1)], dim=1)
            # by row among equal ones, whichever part they are in
            order = torch.argsort(rows, dim=1)
            best, rows = best.gather(1, order), rows.gather(1, order)
            order = torch.argsort(best, dim=1, descending=True, stable=True)[:, :top]
            best, rows = best.gather(1, order), rows.gather(1, order)
        return [
            [self._match(*one) for one in zip(*both, strict=True)]
            for both in zip(rows.tolist(), best.tolist(), strict=True)
        ]

    def _blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows, vectors in self.parts:
            for first in range(0, len(rows), _BLOCK):
                own = slice(first, first + _BLOCK)
                copied = np.array(vectors[own], dtype=np.float32)  # which may be mapped, read-only
                yield torch.from_numpy(rows[own]), torch.from_numpy(copied)

    def _match(self, row: int, similarity: float) -> Match:
        return Match(self.identities[row], similarity, self.keys[row] if self.keys else "", row)


def _ids(path: Path) -> tuple[list[str], list[str]]:
    """The keys and identities of the rows. Raises InputError."""
    lines = [tsv_cells(line) for line in read_lines(path, "the vectors' ids")[1:]]
    if any(len(cells) != 2 for cells in lines):
        raise InputError(f"{path} is damaged (not two columns): embed the dataset anew")
    return [key for key, _ in lines], [identity for _, identity in lines]


def _flat(path: Path) -> tuple[str, Vectors]:
    """The model's fingerprint and the vectors [n, d] of a file. Raises InputError."""
    if path.suffix == ".safetensors":
        vectors = read_arrays(path, needs=("vectors",))["vectors"]
        model: object = stored_model(path)
    else:
        card = path.with_suffix(".json")
        try:
            model = parse_json(read_bytes(card, _CARD_BYTES))["model"]
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # NumPy raises whatever it runs into in a header
            raise InputError(f"{path} or {card.name} is damaged: embed the dataset anew") from error
    good = isinstance(model, str) and isinstance(vectors, np.ndarray)
    if not good or (vectors.dtype, vectors.ndim) != (np.float32, 2):
        raise InputError(f"{path} holds no vectors that `perennial embed` wrote: embed anew")
    return str(model), vectors
