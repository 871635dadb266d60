"""Rows and their optimiser state in files that load at any world size."""

import math
import re

import torch

from trainer.checkpoint.format import CARD, DamagedError, Folder, tensors_name
from trainer.heads.collectives import Ranks
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows, own_ids

_ID_BYTES = 8


def part_name(name: str, ranks: Ranks) -> str:
    """The file that this rank's part of `name` goes to."""
    return f"{name}-{ranks.rank:05d}-of-{ranks.world:05d}"


def parts(folder: Folder, name: str) -> list[tuple[str, int, int]]:
    """The files (name, rank, world) that `name` is saved in."""
    pattern = re.compile(tensors_name(rf"({re.escape(name)}-(\d+)-of-(\d+))"))
    found = map(pattern.fullmatch, sorted(folder.hashes))
    return [(m[1], int(m[2]), int(m[3])) for m in found if m]


def _check_room(folder: Folder, block: str, count: int) -> None:
    """Raises DamagedError when the files are too small for the `count` rows of a card.

    Before memory is taken for them: a card may promise any number.
    """
    with folder.intact(f"{block} of {CARD}"):
        room = sum(folder.size(tensors_name(name)) for name, _, _ in parts(folder, block))
        if not 0 <= count * _ID_BYTES <= room:
            raise ValueError(f"no room for {count} rows")


def _checked(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> torch.Tensor:
    """Removes the ids from a file's `tensors` and returns them.

    Raises ValueError when the tensors are no rows, or differ from `others`, those of files read
    before, in type or in shape.
    """
    ids = tensors.pop("ids")
    if (
        ids.dtype != torch.int64
        or ids.dim() != 1
        or (ids.diff() <= 0).any()
        or "weight" not in tensors
    ):
        raise ValueError("no ascending rows")
    for key, tensor in tensors.items():
        known = others.get(key, tensor)
        if tensor.shape[:1] != ids.shape or (tensor.shape[1:], tensor.dtype) != (
            known.shape[1:],
            known.dtype,
        ):
            raise ValueError(f"{key} has another shape")
    return ids


def rows_tensors(
    rows: ShardedRows, optimizer: RowOptimizer | None = None
) -> dict[str, torch.Tensor]:
    """This rank's rows under their global ids, and their optimiser state beside them."""
    tensors = {"ids": rows.own_ids(), "weight": rows.weight}
    state = optimizer.state if optimizer else {}
    return tensors | {f"state.{name}": tensor for name, tensor in state.items()}


def load_rows(
    folder: Folder, block: str, first: int, last: int, ranks: Ranks
) -> dict[str, torch.Tensor]:
    """This rank's part of rows first <= r < last, from files of any world size.

    Returns `weight` and `state.*` tensors [own, ...].
    Raises DamagedError when a row is missing.
    """
    _check_room(folder, block, last - first)
    wanted = own_ids(first, last, ranks)
    out: dict[str, torch.Tensor] = {}
    found = torch.zeros(len(wanted), dtype=torch.bool)
    for name, rank, world in parts(folder, block):
        if (rank - ranks.rank) % math.gcd(world, ranks.world):
            continue  # row r is on rank r % world: that file has none of this rank's rows
        tensors = folder.tensors(name)
        with folder.intact(tensors_name(name)):
            ids = _checked(tensors, out)
        here = torch.isin(wanted, ids)
        source = torch.searchsorted(ids, wanted[here])
        found |= here
        for key, tensor in tensors.items():
            if key not in out:
                out[key] = torch.zeros(len(wanted), *tensor.shape[1:], dtype=tensor.dtype)
            out[key][here] = tensor[source]
    if not found.all():
        raise DamagedError(f"{folder} lacks row {wanted[~found][0]} of {block}")
    return out
