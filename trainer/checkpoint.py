"""Checkpoints of a training phase and finished models: saved whole or not at all, and verified.

A folder of either kind holds safetensors and JSON and a ``manifest.json`` with every file's
sha256. Rows are saved with their global ids, so they load at any world size.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file

from data_shards.files import fsync, sha256, write_atomically, write_json
from data_shards.settings import InputError
from trainer.heads.collectives import Ranks
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows, own_ids

VERSION = 1


class DamagedError(InputError):
    """A checkpoint or model folder is incomplete or was changed."""


def save_folder(
    folder: Path, files: Mapping[str, Mapping[str, torch.Tensor]], card: Any, ranks: Ranks
) -> None:
    """Writes `files` (name → tensors; each rank gives its own) and rank 0's `card` as `folder`.

    The folder appears by one rename when everything is on disk. Raises OSError on every rank when
    any rank could not write; a half-written folder is then removed.
    """
    part = folder.with_name(f".{folder.name}.part")
    if ranks.rank == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    ranks.barrier()
    failure: OSError | None = None
    try:
        for name, tensors in files.items():
            contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
            save_file(contiguous, part / f"{name}.safetensors")
            fsync(part / f"{name}.safetensors")
        if ranks.rank == 0:
            write_json(part / "card.json", {"version": VERSION, **card})
    except (OSError, RuntimeError) as error:  # safetensors wraps a full disk in its own error
        failure = OSError(f"cannot write {part}: {error}")
    failed = ranks.sum(torch.tensor(float(failure is not None))).item()
    if failed:
        if ranks.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise failure or OSError(f"another rank could not write {part}")
    if ranks.rank == 0:
        hashes = {file.name: sha256(file) for file in sorted(part.iterdir())}
        write_json(part / "manifest.json", hashes)
        fsync(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        fsync(folder.parent)
    ranks.barrier()


def verify_folder(folder: Path) -> dict[str, str]:
    """Compares every file with the manifest and returns it. Raises DamagedError."""
    try:
        hashes: dict[str, str] = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder} is not complete: delete it and run again") from error
    for name, expected in hashes.items():
        if not (folder / name).exists() or sha256(folder / name) != expected:
            raise DamagedError(f"{folder / name} is missing or damaged: delete {folder}, run again")
    return hashes


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a verified folder. Raises DamagedError on another version."""
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    if card["version"] != VERSION:
        raise DamagedError(
            f"{folder} has version {card['version']}, this program reads {VERSION}: delete it"
        )
    return card


def load_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file of a verified folder."""
    return load((folder / f"{name}.safetensors").read_bytes())


def rows_name(block: str, ranks: Ranks) -> str:
    """The file that this rank's part of a block of rows goes to."""
    return f"{block}-{ranks.rank:05d}-of-{ranks.world:05d}"


def rows_tensors(
    rows: ShardedRows, optimizer: RowOptimizer | None = None
) -> dict[str, torch.Tensor]:
    """This rank's rows under their global ids, and their optimiser state beside them."""
    tensors = {"ids": rows.own_ids(), "weight": rows.weight}
    state = optimizer.state if optimizer else {}
    return tensors | {f"state.{name}": tensor for name, tensor in state.items()}


def load_rows(
    folder: Path, block: str, first: int, last: int, ranks: Ranks
) -> dict[str, torch.Tensor]:
    """This rank's part of rows first <= r < last, from files of any world size.

    Returns `weight` and `state.*` tensors [own, ...].
    Raises DamagedError when a row is missing.
    """
    wanted = own_ids(first, last, ranks)
    out: dict[str, torch.Tensor] = {}
    found = torch.zeros(len(wanted), dtype=torch.bool)
    for path in sorted(folder.glob(f"{block}-*-of-*.safetensors")):
        tensors = load_tensors(folder, path.stem)
        ids = tensors.pop("ids")
        here = torch.isin(wanted, ids)
        source = torch.searchsorted(ids, wanted[here])
        found |= here
        for name, tensor in tensors.items():
            if name not in out:
                out[name] = torch.zeros(len(wanted), *tensor.shape[1:], dtype=tensor.dtype)
            out[name][here] = tensor[source]
    if not found.all():
        raise DamagedError(f"{folder} lacks row {wanted[~found][0]} of {block}")
    return out


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """An optimiser's state as a flat mapping ``index.name``, tensors only."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value
        for index, values in state.items()
        for name, value in values.items()
        if torch.is_tensor(value)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts back what `optimizer_tensors` took."""
    whole = optimizer.state_dict()
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**whole, "state": state})


class Checkpoints:
    """The checkpoints of one training phase, newest last, at ``folder/<iteration>``."""

    def __init__(self, folder: Path, keep: int, ranks: Ranks) -> None:
        self._folder, self._keep, self._ranks = folder, keep, ranks

    def _saved(self) -> list[int]:
        if not self._folder.exists():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdigit())

    def save(
        self, iteration: int, files: Mapping[str, Mapping[str, torch.Tensor]], card: Any
    ) -> None:
        """Saves the state before `iteration` and deletes what the policy no longer keeps."""
        save_folder(self._folder / str(iteration), files, card, self._ranks)
        if self._ranks.rank == 0:
            write_atomically(self._folder / "latest", str(iteration).encode())
            for old in self._saved()[: -self._keep]:
                shutil.rmtree(self._folder / str(old))

    def newest(self) -> Path | None:
        """The newest checkpoint whose every file is as it was written; all ranks agree on it."""
        found = None
        if self._ranks.rank == 0:
            for iteration in reversed(self._saved()):
                try:
                    verify_folder(self._folder / str(iteration))
                except DamagedError:
                    continue
                found = iteration
                break
        found = self._ranks.broadcast_object(found)
        return None if found is None else self._folder / str(found)

    def clear(self) -> None:
        """Deletes all of them: the phase's model is written."""
        if self._ranks.rank == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
