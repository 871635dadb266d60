"""Going on from a checkpoint: bit for bit on as many ranks, and alike on any other number."""

import shutil

import pytest
import torch.distributed as dist

from data_shards.settings import InputError
from tests.ranks import on_ranks
from tests.trainer.loops import Interrupted, train_step
from trainer.model import Model


@pytest.fixture(scope="module")
def first_step(small_folder, tmp_path_factory):
    """A run folder with step 0 trained."""
    out = tmp_path_factory.mktemp("first")
    train_step(small_folder, out, "finetune", 0)
    return out


def stop_and_go_on(small_folder, out, settings):
    """The fingerprints of a model trained in one go and of one trained with an interruption."""
    for part in ("whole", "parts"):
        if dist.get_rank() == 0:
            shutil.copytree(out, out.parent / part)
    dist.barrier()
    whole, parts = out.parent / "whole", out.parent / "parts"
    train_step(small_folder, whole, "fkd", 1, **settings)
    with pytest.raises(Interrupted):
        train_step(small_folder, parts, "fkd", 1, stop_at=8, **settings)
    dist.barrier()
    losses = train_step(small_folder, parts, "fkd", 1, **settings)
    assert len(losses) == 4  # of iterations 6, 8, 10 and 12: it did go on from 5
    return [Model.open(folder / "1" / "model").fingerprint for folder in (whole, parts)]


def every_stage(small_folder, out):
    fingerprints = []
    for zero, optimizer in ((0, "adam"), (1, "sgd"), (2, "adam")):
        here = out.parent / f"zero-{zero}" / "start"
        if dist.get_rank() == 0:
            shutil.copytree(out, here)
        dist.barrier()
        settings = {"zero": zero, "optimizer": optimizer, "row_state": "int8"}
        fingerprints.append(stop_and_go_on(small_folder, here, settings))
    return fingerprints


def test_on_two_ranks_every_zero_stage_resumes_bit_for_bit(small_folder, first_step, tmp_path):
    out = shutil.copytree(first_step, tmp_path / "run")
    for fingerprints in on_ranks(2, every_stage, small_folder, out, folder=tmp_path / "store"):
        for whole, parts in fingerprints:
            assert whole == parts


def some_iterations(small_folder, out, zero, stop_at):
    """The losses from the newest checkpoint up to and with iteration `stop_at`."""
    losses = []
    settings = {"iterations": 30, "log_every": 1, "milestones": (), "checkpoint_every": 5}
    settings["learning_rate"] = 1e-4  # no ReLU flips by float error: see docs/facts.md
    with pytest.raises(Interrupted):
        train_step(
            small_folder, out, "fkd", 1, stop_at=stop_at, losses=losses, zero=zero, **settings
        )
    return losses


@pytest.mark.reliability(
    0, "going on at another number of workers is compared from checkpoint to checkpoint"
)
def test_from_one_rank_to_two_to_three_to_one_the_losses_are_the_same(
    small_folder, first_step, tmp_path
):
    """Under another ZeRO stage each time, beside one rank that goes on from the same checkpoint.

    Not beside one that never stopped: how far float error grows within 25 iterations, and which
    ReLU it flips, depends on the processor's kernels.
    """
    parts = shutil.copytree(first_step, tmp_path / "parts")
    begun = len(some_iterations(small_folder, parts, 0, 6)) - 1
    for world, zero, stop_at in ((2, 1, 16), (3, 2, 21), (1, 1, 30)):
        alone = shutil.copytree(parts, tmp_path / f"alone-{world}")
        expected = some_iterations(small_folder, alone, 0, stop_at)
        given = (small_folder, parts, zero, stop_at)
        ranks = on_ranks(world, some_iterations, *given, folder=tmp_path / f"ranks-{world}")
        assert all(losses == ranks[0] for losses in ranks)
        assert len(expected) == stop_at - begun, "it did go on from the checkpoint"
        assert ranks[0] == pytest.approx(expected, rel=1e-5)
        begun = stop_at - 1


@pytest.mark.parametrize("url", ["memory://checkpoints", None])
def test_a_checkpoint_of_another_seed_is_refused(small_folder, first_step, tmp_path, url):
    out = shutil.copytree(first_step, tmp_path / "run")
    with pytest.raises(Interrupted):
        train_step(small_folder, out, "fkd", 1, stop_at=6, checkpoint_url=url)
    with pytest.raises(InputError, match=r"was saved for seed 0, this phase has seed 1: use anoth"):
        train_step(small_folder, out, "fkd", 1, seed=1, checkpoint_url=url)
    assert len(train_step(small_folder, out, "fkd", 1, checkpoint_url=url)) == 4


@pytest.mark.parametrize("first", ["", "expert"])
def test_a_second_training_of_a_step_does_not_take_the_firsts_checkpoint(
    small_folder, first_step, tmp_path, first
):
    """Both in one folder, which no run does: an expert's must not pass for the main model's."""
    out = shutil.copytree(first_step, tmp_path / "run")
    second = "" if first else "expert"
    with pytest.raises(Interrupted):
        train_step(small_folder, out, "fkd", 1, stop_at=6, phase=first)
    given = {"": "none", "expert": "expert"}
    saved = f"was saved for phase {given[first]}, this phase has phase {given[second]}"
    with pytest.raises(InputError, match=saved):
        train_step(small_folder, out, "fkd", 1, phase=second)
    assert len(train_step(small_folder, out, "fkd", 1, phase=first)) == 4


def test_trainings_of_one_step_draw_numbers_of_their_own(small_folder, first_step, tmp_path):
    main, expert = (shutil.copytree(first_step, tmp_path / name) for name in "ab")
    losses = train_step(small_folder, main, "fkd", 1)
    assert losses != train_step(small_folder, expert, "fkd", 1, phase="expert")
