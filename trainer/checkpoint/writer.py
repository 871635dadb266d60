"""Saves a folder: every rank writes its files, rank 0 waits for all of them and publishes it.

The ranks communicate through small files beside the parts, not through collectives: these belong to
the training loop, which continues meanwhile.
"""

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.fence import Fence, FencedStore, unfenced
from trainer.checkpoint.format import (
    CARD,
    MANIFEST,
    VERSIONS,
    blocks,
    encode,
    encode_json,
    tensors_name,
)
from trainer.checkpoint.store import LocalStore, Store
from trainer.heads.collectives import Ranks

PATIENCE_SECONDS = 600.0
"""How long rank 0 waits for the other ranks' files."""

Files = Mapping[str, Mapping[str, torch.Tensor]]
"""A rank's tensors by file name and tensor name."""


@dataclass(frozen=True)
class Save:
    """One attempt to save a folder, as one rank sees it. Its tensors are on the host."""

    store: Store
    name: str
    token: str
    """Names the attempt, equal on all ranks, so that markers of an earlier attempt do not count."""
    files: Files
    """Those of this rank; no two ranks have files of one name."""
    card: dict[str, Any]
    """Only rank 0's is written."""
    rank: int
    world: int

    def run(self) -> None:
        """Writes this rank's files; on rank 0 returns when the folder is complete and published.

        Raises the store's errors, and OSError when another rank failed or wrote nothing in time.
        """
        part = self.store.part(self.name, self.token)
        try:
            self.store.begin(part)
            hashes = {
                tensors_name(name): self._write(f"{part}/{tensors_name(name)}", encode(tensors))
                for name, tensors in self.files.items()
            }
            if self.rank != 0:
                self._write(self._marker(part, self.rank, "done"), encode_json(hashes))
                return
            card = {"version": VERSIONS[self.card["kind"]], **self.card}
            hashes[CARD] = self._write(f"{part}/{CARD}", encode_json(card))
            for rank in range(1, self.world):
                hashes |= self._await(part, rank)
            # last: it makes the folder complete
            self._write(f"{part}/{MANIFEST}", encode_json(hashes))
            self.store.publish(part, self.name)
        except Exception:
            with contextlib.suppress(
                Exception
            ):  # the disk is probably full: the first error counts
                if self.rank == 0:
                    self.store.remove(part)
                else:
                    self._write(self._marker(part, self.rank, "failed"), [])
            raise

    def _marker(self, part: str, rank: int, what: str) -> str:
        return f"{part}/rank-{rank}.{self.token}.{what}"

    def _write(self, path: str, buffers: list[memoryview]) -> str:
        """Writes a file and returns its sha256."""
        digest = hashlib.sha256()

        def hashed() -> Iterator[memoryview]:
            for block in blocks(buffers):
                digest.update(block)
                yield block

        self.store.write(path, hashed())
        return digest.hexdigest()

    def _await(self, part: str, rank: int) -> dict[str, str]:
        """Waits until all files of another rank are written, and returns their hashes.

        Raises OSError when that rank failed, or after `PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        done, failed = (self._marker(part, rank, what) for what in ("done", "failed"))
        while time.monotonic() < deadline:
            # a marker that is just being written is not JSON yet
            with contextlib.suppress(ValueError):
                if (content := self.store.read(done)) is not None:
                    hashes: dict[str, str] = json.loads(content)
                    self.store.remove(done)  # markers are no part of the folder
                    return hashes
            if self.store.read(failed) is not None:
                raise OSError(f"rank {rank} could not write its part")
            time.sleep(self.store.poll_seconds)
        raise OSError(f"rank {rank} did not write its part within {PATIENCE_SECONDS:.0f} s")


def save_folder(
    folder: Path, files: Files, card: dict[str, Any], ranks: Ranks, fence: Fence = unfenced
) -> None:
    """Saves `folder` on a local disk, in the foreground.

    A collective call. Raises OSError on every rank when any could not write.
    """
    fence()
    store = FencedStore(LocalStore(folder.parent), fence)
    if ranks.rank == 0:
        store.sweep(folder.name)
    token = ranks.broadcast_object(secrets.token_hex(4))
    host = HostCopies().of(files)
    failure: Exception | None = None
    try:
        Save(
            store=store,
            name=folder.name,
            token=token,
            files=host,
            card=card,
            rank=ranks.rank,
            world=ranks.world,
        ).run()
    except Exception as error:  # raised below: all ranks must take part in the sum
        failure = error
    if ranks.sum(torch.tensor(float(failure is not None))).item():
        if failure is None:
            raise OSError(f"another rank could not write {folder}")
        raise OSError(f"cannot write {folder}: {failure}") from failure


class HostCopies:
    """Copies of tensors in host memory, which is reused by the next save."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], torch.Tensor] = {}

    def of(self, files: Files) -> Files:
        """Copies every tensor; the copies are valid until the next call."""
        taken: dict[str, dict[str, torch.Tensor]] = {}
        held: dict[tuple[str, str], torch.Tensor] = {}
        for file, tensors in files.items():
            taken[file] = {}
            for name, tensor in tensors.items():
                copy = self._held.get((file, name))
                if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                    pinned = tensor.is_cuda
                    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
                taken[file][name] = held[file, name] = copy
                copy.copy_(tensor.detach(), non_blocking=True)
        self._held = held
        # the copies are asynchronous, and training would change the tensors under them
        if any(tensor.is_cuda for tensor in _all(files)):
            torch.cuda.synchronize()
        return taken


def _all(files: Files) -> Iterable[torch.Tensor]:
    return (tensor for tensors in files.values() for tensor in tensors.values())
