"""Trains a small generator that dies by SIGKILL in the middle, again and again.

``python -m tests.chaos.wgan_kills OUT`` forks a process for each of some iterations: each goes on
from the checkpoints that the one before left, and dies there; in the end one lives.
"""

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from monitoring.metrics import Metrics
from tests.trainer.features import D, mixture
from trainer.activity import Activity
from trainer.heads.collectives import Ranks
from trainer.optimizers import TrainingSettings
from trainer.replay.wgan import Wgan
from trainer.replay.wgan_folder import Wgans
from trainer.replay.wgan_settings import WganSettings
from trainer.replay.wgan_training import WganSpec, train_wgan
from trainer.replay.wgan_updates import WganUpdates

SETTINGS = WganSettings(
    noise=4,
    width=16,
    epochs=30,
    batch=32,
    learning_rate=1e-3,
    decay_every=10,
    alignment=1.0,
    critic_updates=2,
    watch_every=10,
    checkpoint_every=7,
    least_variance=0.0,
)
KILLED = (5, 6, 11, 23, 24, 31)
"""Iterations, within and behind updates of the generator and checkpoints."""


def spec(out: Path, **changed: Any) -> WganSpec:
    """The second step of two of a generator of three and two classes: 38 iterations."""
    settings = changed.pop("settings", SETTINGS)
    values = {
        "how": Wgans(settings),
        "ends": "none",
        "features": mixture(3, 5, 20),
        "rows": 5,
        "before": Wgan.new(SETTINGS.shape(D, relu=False), 3, None, seed=0, step=0),
        "seed": 0,
        "step": 1,
        "training": TrainingSettings(),
        "output": out / "generator",
        "checkpoints": str(out / "checkpoints"),
        "name": "gfr/seed-0/step-1",
        "origin": "this",
        **changed,
    }
    return WganSpec(**values)


def train(training: WganSpec, **given: Any) -> tuple[bool, list[dict[str, Any]], list[str]]:
    """Trains it here; what was reported, and told."""
    records: list[dict[str, Any]] = []
    told: list[str] = []
    values = {
        "ranks": Ranks.default(),
        "activity": Activity(),
        "metrics": Metrics(),
        **given,
    }
    done = train_wgan(
        training, device=torch.device("cpu"), report=records.append, tell=told.append, **values
    )
    return done, records, told


def dies_at(iteration: int) -> None:
    """Arms this process: SIGKILL when so many updates were made, before anything is saved."""
    step = WganUpdates.step

    def killing(self: WganUpdates, stop: bool = False) -> Any:
        losses = step(self, stop)
        if self.iteration == iteration:
            os.write(1, f"killed at {iteration}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        return losses

    WganUpdates.step = killing  # type: ignore[method-assign]


def main(out: Path) -> None:
    """Kills them all but the last."""
    import_module("torch._dynamo")  # seconds, which the first optimiser of each of them would take
    for iteration in (*KILLED, None):
        child = os.fork()
        if child == 0:
            if iteration is not None:
                dies_at(iteration)
            try:
                done, records, _ = train(spec(out))
                os.write(1, f"goes on to {records[-1]['iteration']}: {done}\n".encode())
                os._exit(0)
            finally:
                os._exit(1)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended != (0 if iteration is None else -signal.SIGKILL):
            raise SystemExit(f"the training that dies at {iteration} ended with {ended}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
