"""A trainer that may not write any more writes nothing more, wherever it is when that happens."""

import re
from pathlib import Path

import pytest
import torch

from data_shards.settings import InputError
from monitoring.metrics import Metrics
from tests.trainer.loops import train_step
from trainer.checkpoint import Checkpoints
from trainer.checkpoint.fence import FencedStore
from trainer.checkpoint.store import LocalStore
from trainer.heads.collectives import Ranks
from trainer.optimizers import TrainingSettings


class Refused(InputError):
    """What the fence raises here."""


class Closing:
    """A fence that lets `calls` pass, and keeps what was there when it first refused."""

    def __init__(self, folder: Path, calls: int) -> None:
        self._folder, self._left = folder, calls
        self.passed = 0
        self.then: dict[str, bytes] | None = None

    def __call__(self) -> None:
        if self.passed < self._left:
            self.passed += 1
            return
        if self.then is None:
            self.then = tree(self._folder)
        raise Refused("no more")


def tree(folder: Path) -> dict[str, bytes]:
    """Files by name; a folder before its rename, which another thread may be at when
    the fence closes, counts as that after it."""
    while True:
        try:
            files = {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if not p.is_dir()}
        except FileNotFoundError:  # renamed while it was looked at: it has another name by now
            continue
        return {re.sub(r"/\.([^./]+)\.[^/]*\.part/", r"/\1/", name): files[name] for name in files}


SETTINGS = {"iterations": 6, "milestones": (), "checkpoint_every": 2, "keep_checkpoints": 1}


def test_nothing_changes_after_the_fence_closed(small_folder, tmp_path):
    everything = Closing(tmp_path / "open", 10**9)
    train_step(small_folder, tmp_path / "open", "finetune", 0, fence=everything, **SETTINGS)
    assert everything.passed > 30
    moments = range(0, everything.passed, 11)
    for calls in (*moments, everything.passed - 1):
        out = tmp_path / str(calls)
        fence = Closing(out, calls)
        with pytest.raises((Refused, OSError), match="no more"):
            train_step(small_folder, out, "finetune", 0, fence=fence, tell=str, **SETTINGS)
        now = tree(out)
        written = now.items() - fence.then.items()
        what = f"written past a fence closed at call {calls}, more than the file being written"
        assert len(written) <= 1, what
        gone = {Path(name).parent for name in fence.then.keys() - now.keys()}
        assert len(gone) <= 1, "deleted more than the folder that was being deleted by then"


@pytest.mark.parametrize(
    ("change", "arguments"),
    [
        ("begin", ("new",)),
        ("write", ("new", [memoryview(b"x")])),
        ("publish", (".2.t.part", "2")),
        ("replace", ("latest", b"2")),
        ("remove", ("1",)),
        ("sweep", ("*",)),
    ],
)
def test_every_change_of_a_store_is_refused(tmp_path, change, arguments):
    for folder in ("1", ".2.t.part"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "manifest.json").write_text("{}")
    closed, before = Closing(tmp_path, 0), tree(tmp_path)
    with pytest.raises(Refused):
        getattr(FencedStore(LocalStore(tmp_path), closed), change)(*arguments)
    assert tree(tmp_path) == before
    getattr(FencedStore(LocalStore(tmp_path), lambda: None), change)(*arguments)


def test_a_checkpoint_that_is_refused_ends_the_training(tmp_path):
    """Other failures are told, and training goes on."""
    settings, closed = TrainingSettings(), Closing(tmp_path, 0)
    with (
        pytest.raises(Refused),
        Checkpoints(str(tmp_path), settings, Ranks(), Metrics(), str, closed) as checkpoints,
    ):
        checkpoints.save(1, {"x": {"t": torch.ones(2)}}, {})
