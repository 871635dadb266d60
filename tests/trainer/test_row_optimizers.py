"""Row optimisers equal torch's where all rows have gradients, and leave the others alone."""

import pytest
import torch

from trainer.heads.collectives import Ranks
from trainer.heads.row_optimizers import RowOptimizer
from trainer.heads.row_state import Moment, Touched, noise
from trainer.heads.rows import ShardedRows
from trainer.optimizers import TrainingSettings, make_optimizer

ROWS, DIMENSION = 13, 6


def settings(optimizer="sgd", row_state="fp32", **more):
    return TrainingSettings(
        iterations=1, optimizer=optimizer, row_state=row_state, weight_decay=0.01, **more
    )


def gradients(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, ROWS, DIMENSION, generator=generator)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_dense_updates_equal_torchs(optimizer):
    rows = ShardedRows.new(0, ROWS, DIMENSION, 0, Ranks())
    ours = RowOptimizer(rows, settings(optimizer))
    weight = torch.nn.Parameter(rows.weight.detach().clone())
    peer = make_optimizer([weight], settings(optimizer))
    for gradient in gradients(9):
        rows.weight.grad, weight.grad = gradient.clone(), gradient
        ours.step(0.05)
        peer.step()
    torch.testing.assert_close(rows.weight, weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("row_state", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_rows_without_a_gradient_are_not_touched(optimizer, row_state):
    rows = ShardedRows.new(0, ROWS, DIMENSION, 0, Ranks())
    ours = RowOptimizer(rows, settings(optimizer, row_state))
    rows.weight.grad = gradients(1)[0]
    ours.step(0.05)  # momentum and decay would now move every row
    before = {"weight": rows.weight.detach().clone()}
    before |= {k: v.clone() for k, v in ours.state.items()}
    touched = torch.tensor([2, 7, 11])
    rows.weight.grad = torch.sparse_coo_tensor(
        touched[None], gradients(1, 1)[0][:3], (ROWS, DIMENSION), check_invariants=True
    )
    ours.step(0.05)
    after = {"weight": rows.weight.detach(), **ours.state}
    others = torch.ones(ROWS, dtype=torch.bool)
    others[touched] = False
    for name in before:
        assert torch.equal(before[name][others], after[name][others]), name
    assert not (before["weight"][touched] == after["weight"][touched]).any()


@pytest.mark.parametrize("row_state", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_updates_of_all_rows_equal_updates_of_each(optimizer, row_state):
    """Whichever way rows are addressed; rounding follows the row, not its place."""
    whole, parts = (ShardedRows.new(0, ROWS, DIMENSION, 0, Ranks()) for _ in range(2))
    a, b = (RowOptimizer(rows, settings(optimizer, row_state)) for rows in (whole, parts))
    for gradient in gradients(4):
        a.update(slice(0, ROWS), gradient.clone(), 0.05)
        for index in torch.randperm(ROWS).split(5):
            b.update(index, gradient[index], 0.05)
    assert torch.equal(whole.weight, parts.weight)


@pytest.mark.parametrize("row_state", ["bf16", "int8"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_reduced_state_follows_the_exact_path(optimizer, row_state):
    """On a noisy quadratic, it ends near where fp32 state ends."""
    target = torch.linspace(-1, 1, ROWS * DIMENSION).view(ROWS, DIMENSION)
    distance = {}
    for kind in ("fp32", row_state):
        rows = ShardedRows.new(0, ROWS, DIMENSION, 0, Ranks())
        ours = RowOptimizer(rows, settings(optimizer, kind))
        start = (rows.weight - target).norm()
        for gradient in gradients(300):
            ours.update(slice(0, ROWS), rows.weight.detach() - target + gradient / 10, 0.02)
        distance[kind] = ((rows.weight - target).norm() / start).item()
    assert distance["fp32"] < 0.15
    assert distance[row_state] < 2 * distance["fp32"]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("positive", [False, True])
def test_rounding_is_unbiased(precision, positive):
    """A moment that falls by a thousandth a time falls as far as it should, not never."""
    moment = Moment(torch.zeros(4, 512), precision, positive)
    values, ids = (
        torch.rand(4, 512, generator=torch.Generator().manual_seed(0)) + 0.5,
        torch.arange(4),
    )
    moment.write(Touched(slice(0, 4), ids, torch.zeros(4)), values.clone())
    for count in range(1, 501):
        faded = moment.read(slice(0, 4)) * 0.999
        moment.write(Touched(slice(0, 4), ids, torch.full((4,), count)), faded)
    ratio = moment.read(slice(0, 4)).mean() / values.mean()
    assert ratio == pytest.approx(0.999**500, rel=0.02)


def test_a_small_second_moment_never_becomes_zero():
    moment = Moment(torch.zeros(1, 2), "int8", positive=True)
    row = Touched(slice(0, 1), torch.zeros(1).long(), torch.zeros(1))
    moment.write(row, torch.tensor([[1.0, 1e-12]]))
    assert (moment.read(slice(0, 1)) > 0).all()


def test_noise_is_even_and_uncorrelated():
    drawn = noise(torch.arange(200), torch.arange(200) % 7, 256).double() / 65536
    assert abs(drawn.mean().item() - 0.5) < 0.005
    assert abs(drawn.var().item() - 1 / 12) < 0.002
    for axis in (0, 1):
        a, b = drawn.narrow(axis, 0, 199), drawn.narrow(axis, 1, 199)
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()) < 0.02


def test_first_step_of_a_late_row_is_like_any_first_step():
    rows = ShardedRows.new(0, 2, DIMENSION, 0, Ranks())
    ours = RowOptimizer(rows, TrainingSettings(iterations=1, optimizer="adam", weight_decay=0))
    for _ in range(100):
        ours.update(torch.tensor([0]), torch.ones(1, DIMENSION), 0.01)
    before = rows.weight[1].detach().clone()
    ours.update(torch.tensor([1]), torch.ones(1, DIMENSION), 0.01)
    torch.testing.assert_close(before - rows.weight[1].detach(), torch.full((DIMENSION,), 0.01))


@pytest.mark.parametrize("row_state", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rows_that_are_not_valid_stay(optimizer, row_state):
    """A GPU's list of drawn rows is longer than the draw."""
    lists = {"short": (torch.tensor([1, 4]), None)}
    lists["long"] = torch.tensor([1, 4, 6, 0]), torch.tensor([True, True, False, False])
    after = {}
    for name, (index, valid) in lists.items():
        rows = ShardedRows.new(0, ROWS, DIMENSION, 0, Ranks())
        ours = RowOptimizer(rows, settings(optimizer, row_state))
        ours.update(slice(0, ROWS), gradients(1)[0], 0.05)
        ours.update(index, gradients(1, 1)[0][: len(index)], 0.05, valid)
        after[name] = {"weight": rows.weight.detach(), **ours.state}
    for name, tensor in after["short"].items():
        assert torch.equal(tensor, after["long"][name]), name
