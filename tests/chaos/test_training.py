"""Faults inside training: bad numbers, stalled input, and a number of ranks that keeps changing."""

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.ranks import on_ranks
from tests.trainer.loops import train_step
from trainer.guard import GuardSettings
from trainer.heads.collectives import Ranks
from trainer.methods.terms import Classify
from trainer.model import Model


def rows(out: Path) -> torch.Tensor:
    return Model.open(out / "model").sharded_rows(Ranks()).weight.detach()


@dataclass(frozen=True)
class FlippedBit:
    """Classification; a weight of one rank becomes NaN before an iteration, as memory errors do."""

    iteration: int
    calls: tuple = ()
    weight: float = 1.0
    name: str = "classify"
    over: str = "new"
    wants: tuple = ()

    def at(self, old_rows):
        return replace(self, calls=[])

    def __call__(self, forward):
        self.calls.append(0)
        if len(self.calls) == self.iteration and forward.rows["new"].ranks.rank == 1:
            forward.rows["new"].weight.data[0, 0] = math.nan
        return Classify()(forward)


def flipped(folder, out):
    events, records = [], []
    guard = GuardSettings(rewind_after=1)
    term = FlippedBit(8).at(0)
    train_step(
        folder, out, "finetune", 0, terms=(term,), events=events, records=records, guard=guard
    )
    return [(e["event"], e["iteration"]) for e in events], records[-1]["rewinds"]


def test_nan_in_the_weights_of_one_rank_is_rewound_by_all(small_folder, tmp_path, record_fault):
    told = on_ranks(2, flipped, small_folder, tmp_path / "a", folder=tmp_path / "store")
    assert told[0] == told[1] == ([("skip", 8), ("rewind", 8)], 1)
    alone = tmp_path / "b"
    train_step(small_folder, alone, "finetune", 0, terms=(Classify(),), preempt_at=4)
    assert (alone / "0/checkpoints/5").exists()
    shutil.copy(tmp_path / "a/0/rewinds.jsonl", alone / "0/rewinds.jsonl")
    left_out = json.loads((alone / "0/rewinds.jsonl").read_text())["samples"]
    assert 0 < len(left_out) <= 20
    train_step(small_folder, alone, "finetune", 0, terms=(Classify(),))
    torch.testing.assert_close(rows(tmp_path / "a/0"), rows(alone / "0"), rtol=1e-2, atol=1e-3)
    record_fault(
        "a weight of one rank becomes NaN",
        "all ranks skip, rewind to the last checkpoint and leave those samples out",
        "the result of a run that never saw those samples; perennial_rewinds_total 1",
    )


def preempted(folder, out, method, at):
    return train_step(folder, out, method, 1, preempt_at=at)


@pytest.mark.parametrize("method", ["finetune", "fkd"])
def test_world_size_1_2_3_1_in_one_phase(small_folder, tmp_path, record_fault, method):
    """Each part ends by a stop that only the last rank is asked for."""
    train_step(small_folder, tmp_path / "whole", "finetune", 0)
    parts = Path(shutil.copytree(tmp_path / "whole", tmp_path / "parts"))
    whole = train_step(small_folder, tmp_path / "whole", method, 1)
    losses = preempted(small_folder, parts, method, 2)
    for world, stop in ((2, 6), (3, 8)):
        store = tmp_path / f"store-{world}"
        ranks = on_ranks(world, preempted, small_folder, parts, method, stop, folder=store)
        assert all(other == ranks[0] for other in ranks)
        losses += ranks[0]
        assert not (parts / "1/model").exists()
    losses += preempted(small_folder, parts, method, None)
    assert len(losses) <= len(whole) + 3
    assert losses[0] == whole[0]
    assert losses[-1] == pytest.approx(whole[-1], rel=1e-3)
    torch.testing.assert_close(rows(parts / "1"), rows(tmp_path / "whole/1"), rtol=1e-2, atol=1e-3)
    record_fault(
        f"1, 2, 3 and again 1 ranks in one phase ({method})",
        "each group is preempted, saves, and the next loads its checkpoint",
        "the result of one rank, to float error",
    )
