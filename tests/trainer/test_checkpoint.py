"""Checkpoints: whole, verified, and free of the world size they were saved at."""

import shutil

import pytest
import torch

from tests.ranks import on_ranks
from trainer.checkpoint import (
    Checkpoints,
    DamagedError,
    load_optimizer,
    load_rows,
    load_tensors,
    optimizer_tensors,
    rows_name,
    rows_tensors,
    verify_folder,
)
from trainer.heads.collectives import Ranks
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.rows import ShardedRows
from trainer.optimizers import TrainingSettings, for_all_data, learning_rate, make_optimizer

FIRST, LAST, SETTINGS = 5, 18, TrainingSettings(iterations=1)


def row_values(ids, scale):
    return torch.stack([ids * scale, ids * scale + 0.5], dim=1).float()


def save_on_rank(folder):
    ranks = Ranks.default()
    rows = ShardedRows.new(FIRST, LAST, 2, 0, ranks)
    rows.weight.data.copy_(row_values(rows.own_ids(), 1))
    optimizer = RowOptimizer(rows, SETTINGS)
    optimizer.state["momentum"].copy_(row_values(rows.own_ids(), -1))
    files = {rows_name("rows", ranks): rows_tensors(rows, optimizer)}
    Checkpoints(folder, 2, ranks).save(30, files, {"iteration": 30})
    return True


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_and_momentum_load_at_another_world_size(world, tmp_path):
    on_ranks(world, save_on_rank, tmp_path / "checkpoints", folder=tmp_path / "ranks")
    folder = Checkpoints(tmp_path / "checkpoints", 2, Ranks()).newest()
    assert folder is not None
    for other in (1, 2, 3, 20):
        for rank in range(other):
            ranks = Ranks(rank, other)
            ids = ShardedRows.new(FIRST, LAST, 2, 0, ranks).own_ids()
            found = load_rows(folder, "rows", FIRST, LAST, ranks)
            assert torch.equal(found["weight"], row_values(ids, 1))
            assert torch.equal(found["state.momentum"], row_values(ids, -1))


def saved(tmp_path, iterations=(10, 20, 30)):
    checkpoints = Checkpoints(tmp_path / "c", 2, Ranks())
    for iteration in iterations:
        files = {"embedder": {"x": torch.full((4,), float(iteration))}}
        checkpoints.save(iteration, files, {"iteration": iteration})
    return checkpoints


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path)
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["20", "30", "latest"]


@pytest.mark.parametrize("file", ["embedder.safetensors", "card.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, file, damage):
    checkpoints = saved(tmp_path)
    path = tmp_path / "c" / "30" / file
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1] if file != "manifest.json" else content[:-5])
    else:
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.name == "20"
    assert load_tensors(newest, "embedder")["x"][0] == 20


def test_nothing_good_left_is_no_checkpoint(tmp_path):
    checkpoints = saved(tmp_path)
    for folder in ("20", "30"):
        shutil.rmtree(tmp_path / "c" / folder)
    assert checkpoints.newest() is None


def test_an_incomplete_folder_is_named(tmp_path):
    with pytest.raises(DamagedError, match="is not complete"):
        verify_folder(tmp_path)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_optimisers_go_on_exactly(tmp_path, kind):
    settings = TrainingSettings(iterations=1, optimizer=kind)

    def trained(steps, state=None):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 3)
        optimizer = make_optimizer(layer.parameters(), settings)
        if state:
            layer.load_state_dict(state[0])
            load_optimizer(optimizer, state[1])
        for _ in range(steps):
            optimizer.zero_grad()
            layer(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        kept = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
        return {k: v.clone() for k, v in layer.state_dict().items()}, kept

    whole, half = trained(6), trained(3)
    resumed = trained(3, half)
    assert torch.equal(whole[0]["weight"], resumed[0]["weight"])


def test_new_rows_do_not_depend_on_the_world_size():
    whole = ShardedRows.new(3, 9000, 4, 7, Ranks())
    for world in (2, 3):
        for rank in range(world):
            part = ShardedRows.new(3, 9000, 4, 7, Ranks(rank, world))
            assert torch.equal(part.weight, whole.weight[part.own_ids() - 3])


def test_the_schedule_drops_at_milestones_and_stretches_for_all_data():
    settings = TrainingSettings(iterations=10, learning_rate=1.0, milestones=(4, 8), warmup=2)
    rates = [learning_rate(settings, i) for i in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    longer = for_all_data(settings, 2)
    assert (longer.iterations, longer.milestones) == (30, (12, 24))


@pytest.mark.parametrize("milestones", [(8, 4), (0,), (10,), (3, 3)])
def test_impossible_milestones_are_refused(milestones):
    with pytest.raises(ValueError, match="must ascend"):
        TrainingSettings(iterations=10, milestones=milestones)
