"""The engine around the embedder does what the optimiser alone would, and nothing else."""

import os

import pytest
import torch

from tests.ranks import on_ranks
from trainer.engine import build_engine
from trainer.heads.collectives import Ranks
from trainer.optimizers import TrainingSettings, make_optimizer


def trained(zero, optimizer, engine):
    """A layer's weights after three iterations with large gradients."""
    training = TrainingSettings(optimizer=optimizer, learning_rate=0.01)
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    own = make_optimizer(layer.parameters(), training)
    wrapped = build_engine(layer, own, 4, Ranks.default(), zero) if engine else None
    inputs = torch.linspace(-30, 50, 20).view(4, 5)
    for _ in range(3):
        loss = (wrapped or layer)(inputs).square().sum()
        if wrapped is None:
            own.zero_grad()
            loss.backward()
            own.step()
        else:
            wrapped.backward(loss)
            wrapped.step()
    return [parameter.detach().clone() for parameter in layer.parameters()]


def on_rank(extensions):
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    cases = [(zero, optimizer) for zero in (0, 1, 2) for optimizer in ("sgd", "adam")]
    return {case: (trained(*case, True), trained(*case, False)) for case in cases}


@pytest.fixture(scope="module")
def extensions(tmp_path_factory):
    """Where torch builds extensions."""
    return tmp_path_factory.mktemp("extensions")


@pytest.fixture(scope="module")
def results(extensions, tmp_path_factory):
    return on_ranks(2, on_rank, extensions, folder=tmp_path_factory.mktemp("engine"))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_steps_are_the_optimisers_own(results, zero, optimizer):
    """Gradients are neither clipped nor scaled, however large."""
    for result in results:
        ours, plain = result[zero, optimizer]
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_the_engine_starts_without_building_a_kernel(results, extensions):
    """Which takes a compiler, and half a minute."""
    assert not list(extensions.iterdir())
