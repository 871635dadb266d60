"""The rewinds of a training phase to a checkpoint, and the samples left out because of them."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.files import write_atomically
from trainer.checkpoint import Fence, unfenced
from trainer.divergence import Diverged
from trainer.guard import Fault
from trainer.heads.collectives import Ranks


class Rewinds:
    """A phase's rewinds: decided by all ranks, written by rank 0, read again after a restart."""

    def __init__(self, path: Path, ranks: Ranks, fence: Fence = unfenced) -> None:
        self._path, self._ranks, self._fence = path, ranks, fence
        # rank 0's view on every rank: all must leave out the same samples
        lines = None
        if ranks.rank == 0:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self._records = [json.loads(line) for line in ranks.broadcast_object(lines)]

    def __len__(self) -> int:
        return len(self._records)

    @property
    def suspects(self) -> NDArray[np.int64]:
        """The samples left out, ascending."""
        held = [np.array(record["samples"], dtype=np.int64) for record in self._records]
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *held]))

    def add(
        self, iteration: int, why: Fault, samples: NDArray[np.int64], available: int, limit: int
    ) -> None:
        """Records a rewind at `iteration`; `samples` are of the global batches that led to it.

        They are left out from now on, unless more than half of the `available` samples would be:
        then the data is not the cause. Raises Diverged at the `limit` of rewinds.
        """
        if len(self) >= limit:
            raise Diverged(
                f"iteration {iteration}: updates were skipped again ({EXPLAINED[why]}), after "
                f"training.guard.max_rewinds = {limit} rewinds: lower training.learning_rate or "
                "the method's weight, or raise that limit and run again"
            )
        together = np.union1d(self.suspects, samples)
        left_out = np.unique(samples).tolist() if len(together) <= available / 2 else []
        self._records.append({"iteration": iteration, "why": why, "samples": left_out})
        if self._ranks.rank == 0:
            self._fence()
            text = "".join(json.dumps(record) + "\n" for record in self._records)
            write_atomically(self._path, text.encode())
        self._ranks.barrier()


EXPLAINED: dict[Fault, str] = {
    "loss": "the loss is not finite",
    "spike": "the loss is far above the recent ones",
    "gradient": "a gradient is not finite",
    "overflow": "a gradient is too large for float16",
    "weights": "the weights are not finite",
}
