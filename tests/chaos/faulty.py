"""A run in whose own process things go wrong when a file says so.

``python -m tests.chaos.faulty FAULTS run CONFIG ...`` is ``perennial run CONFIG ...``, where that
trains in its own process. A file ``labels`` in the folder FAULTS gives the images of one batch the
labels of others; a file ``weight`` makes a weight of the embedder NaN. Each is deleted when done.
Steps take a while but not a core's time, as those of a GPU do: while alerts are waited for, such a
run costs others little.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_shards.storage.dataset import ShardDataset
from launch.cli import main
from trainer.stepper import Stepper

STEP_SECONDS = 0.06
"""Beside what a step computes."""


def arm(faults: Path) -> None:
    """Makes this process listen to the files in `faults`."""
    read: Callable[..., Any] = ShardDataset.images
    step: Callable[..., Any] = Stepper.__call__

    def asked(fault: str) -> bool:
        try:
            (faults / fault).unlink()
        except FileNotFoundError:
            return False
        return True

    def images(self: ShardDataset, samples: Any) -> Any:
        found = read(self, samples)
        return found[1:] + found[:1] if asked("labels") else found

    def stepped(self: Stepper, batch: Any) -> Any:
        if asked("weight"):
            next(self._state.engine.module.parameters()).data.view(-1)[0] = math.nan
        losses = step(self, batch)
        time.sleep(STEP_SECONDS)
        return losses

    ShardDataset.images = images  # type: ignore[method-assign]
    Stepper.__call__ = stepped  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(Path(sys.argv.pop(1)))
    main()
