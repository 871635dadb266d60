"""What people are shown of a memory: its size, and the first exemplars of some identities."""

from typing import Any

import numpy as np

from data_shards.storage.dataset import ShardDataset
from trainer.evaluation.protocol import picture

_COLUMNS = 10


def exemplar_sheet(
    memory: ShardDataset, rows: int, before: ShardDataset | None = None
) -> dict[str, Any]:
    """The counts and bytes of `memory`, and pictures of `rows` identities, as exemplars.json has
    them.

    The identities are evenly spaced, from those learned first to the newest. Of each the first
    exemplars are shown: those that stay longest. Where they were learned, `before` has the same
    ones as they came, which are shown, too.
    """
    identities = memory.manifest["identities"]
    spaced = np.linspace(0, max(0, identities - 1), min(rows, identities)).astype(np.int64)
    shown = []
    for identity in np.unique(spaced).tolist():
        first = np.flatnonzero(memory.identity == identity)[:_COLUMNS].tolist()
        one = {"identity": str(memory.names[identity]), "jpegs": _jpegs(memory, first)}
        if before is not None:
            one["before"] = _jpegs(before, first)
        shown.append(one)
    told = {
        "images": len(memory),
        "identities": identities,
        "bytes": int(memory.size.sum(dtype=np.int64)),
        "shown": shown,
    }
    if (size := memory.manifest["image_size"]) is not None:
        told["pixel_bytes"] = 3 * size[0] * size[1] * len(memory)
    return told


def _jpegs(memory: ShardDataset, samples: list[int]) -> list[str]:
    return [picture(memory, sample)["jpeg"] for sample in samples]
