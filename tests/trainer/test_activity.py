"""What a rank says it is doing: collectives are apart, so that its own work is its own."""

from itertools import pairwise

from tests.ranks import on_ranks
from tests.trainer.loops import train_step


def turns(folder, out):
    done = []
    train_step(
        folder,
        out,
        "finetune",
        0,
        iterations=2,
        milestones=(),
        count=lambda what, _: done.append(what),
    )
    return done


def test_the_forward_pass_waits_for_other_ranks_within_exchanges(small_folder, tmp_path):
    """Batch normalisation exchanges its statistics there."""
    told = on_ranks(2, turns, small_folder, tmp_path / "run", folder=tmp_path / "store")
    for done in told:
        assert ("forward", "exchanging") in pairwise(done)
        assert ("exchanging", "forward") in pairwise(done)
        assert ("exchanging", "backward") in pairwise(done)


def test_a_single_rank_exchanges_nothing(small_folder, tmp_path):
    assert "exchanging" not in turns(small_folder, tmp_path)
