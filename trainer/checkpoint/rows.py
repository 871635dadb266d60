"""Rows and their optimiser state in files that load at any world size."""

import math
import re

import torch

from trainer.checkpoint.format import DamagedError, Folder, tensors_name
from trainer.heads.collectives import Ranks
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows, own_ids


def part_name(name: str, ranks: Ranks) -> str:
    """The file that this rank's part of `name` goes to."""
    return f"{name}-{ranks.rank:05d}-of-{ranks.world:05d}"


def parts(folder: Folder, name: str) -> list[tuple[str, int, int]]:
    """The files (name, rank, world) that `name` is saved in."""
    pattern = re.compile(tensors_name(rf"({re.escape(name)}-(\d+)-of-(\d+))"))
    found = map(pattern.fullmatch, sorted(folder.hashes))
    return [(m[1], int(m[2]), int(m[3])) for m in found if m]


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
    wanted = own_ids(first, last, ranks)
    out: dict[str, torch.Tensor] = {}
    found = torch.zeros(len(wanted), dtype=torch.bool)
    for name, rank, world in parts(folder, block):
        if (rank - ranks.rank) % math.gcd(world, ranks.world):
            continue  # row r is on rank r % world: no row is on both
        tensors = folder.tensors(name)
        ids = tensors.pop("ids")
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
