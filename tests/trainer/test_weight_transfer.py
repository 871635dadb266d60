"""Frozen convolutions with trained factors and shifts: they begin as the model before."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data_shards.settings import InputError
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods.icarl import ICaRL
from trainer.methods.lucir import LUCIR
from trainer.methods.recipe import FROM_SCRATCH, Recipe
from trainer.state import build_state
from trainer.weight_transfer import TransferredConvolution

NETWORKS = [
    {"architecture": "small", "width": 4, "dimension": 8},
    {"architecture": "resnet32", "projection": "none", "dimension": 64},
    {"architecture": "resnet18", "stem": "small", "dimension": 8},
]
TRANSFERS = ["channels", "kernels"]


def images(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def both(network, transfer):
    """A network trained in whole, and one with its weights."""
    usual = EmbedderSettings(**network)
    whole = build_embedder(usual, seed=1)
    own = build_embedder(usual.model_copy(update={"convolutions": transfer}), seed=2)
    own.load_state_dict(whole.state_dict())
    return whole, own


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_it_begins_as_the_model_before_bit_for_bit(network, transfer):
    whole, own = both(network, transfer)
    for mode in (True, False):
        torch.testing.assert_close(
            own.train(mode)(images()), whole.train(mode)(images()), rtol=0, atol=0
        )
    again = build_embedder(
        EmbedderSettings(**network, convolutions=transfer), seed=3
    )  # and so does the step after
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(1.01).add_(0.01)
    again.load_state_dict(own.state_dict())
    assert torch.equal(again.eval()(images()), own.eval()(images()))


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_factors_and_shifts_are_trained_and_no_weight(transfer):
    _, own = both(NETWORKS[0], transfer)
    names = {name for name, _ in own.named_parameters()}
    convolutions = {n for n, m in own.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convolutions) == 6
    for name in convolutions:
        assert f"{name}.weight" not in names and {f"{name}.factor", f"{name}.shift"} <= names
    before = {name: value.clone() for name, value in own.state_dict().items()}
    # by running statistics: a batch's own would take channels' factors and shifts out again
    loss = own.eval()(images()).square().sum()
    loss.backward()
    optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)
    optimizer.step()
    after = own.state_dict()
    for name in convolutions:
        assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
        assert own.get_parameter(f"{name}.factor").grad.any()
        assert own.get_parameter(f"{name}.shift").grad.any()


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_what_a_convolution_makes_is_scaled_and_shifted(transfer):
    original = nn.Conv2d(3, 5, 3, stride=2, padding=1, bias=False).double()
    own = TransferredConvolution(original, transfer)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=drawn))
    x = torch.randn(2, 3, 8, 8, generator=drawn, dtype=torch.float64)
    found = own(x)
    assert own.factor.shape == ((5, 3, 1, 1) if transfer == "kernels" else (5, 1, 1, 1))
    for channel in range(5):
        made = torch.zeros(2, 4, 4, dtype=torch.float64)
        for source in range(3):
            part = nn.functional.conv2d(
                x[:, [source]], original.weight[[channel]][:, [source]], stride=2, padding=1
            )[:, 0]
            made += part * own.factor[channel, source if transfer == "kernels" else 0, 0, 0]
        torch.testing.assert_close(found[:, channel], made + own.shift[channel])


def test_batch_normalisation_takes_a_channels_factor_and_shift_out_again():
    """Which is why there are factors of kernels, too."""
    for transfer, moves in (("channels", False), ("kernels", True)):
        _, own = both(NETWORKS[0], transfer)
        before = own.train()(images())
        drawn = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for module in own.modules():
                if isinstance(module, TransferredConvolution):
                    module.factor.add_(torch.rand(module.factor.shape, generator=drawn))
                    module.shift.add_(torch.rand(module.shift.shape, generator=drawn))
        largest = float((own(images()) - before).detach().abs().max())
        assert (largest > 0.05) == moves and (moves or largest < 1e-2)


def test_step_0_is_trained_in_whole_and_what_is_not_set_decides_nothing():
    usual = EmbedderSettings()
    for method in (
        LUCIR(weight_transfer="channels"),
        ICaRL(memory={"per_class": 2}, weight_transfer="channels"),
    ):
        assert method.network(usual, 0).convolutions == "trained"
        assert method.network(usual, 1).convolutions == "channels"
    assert "convolutions" not in usual.deciding()
    assert usual.model_copy(update={"convolutions": "kernels"}).deciding()["convolutions"]
    assert LUCIR(weight_transfer="kernels").network(usual, 1).activation == "cosine"


def test_random_weights_are_not_kept(monkeypatch):
    """A step that begins anew would learn with convolutions of nothing."""
    monkeypatch.setattr("trainer.state.spec_seed", lambda *_: 0)
    settings = EmbedderSettings(**NETWORKS[0], convolutions="channels")
    spec = SimpleNamespace(
        embedder=settings,
        classifier=ClassifierSettings(),
        begins=None,
        recipe=Recipe(start=FROM_SCRATCH),
    )
    with pytest.raises(InputError, match="convolutions = channels would keep random weights"):
        build_state(spec, Ranks(), torch.device("cpu"))
