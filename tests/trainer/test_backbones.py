"""Networks: ResNet-32 against convolutions one by one, and what stands behind the trunk."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from trainer.backbones import EmbedderSettings, build_embedder

PLAIN = {"architecture": "resnet32", "projection": "none", "dimension": 64}
FEATURES = {"small": 128, "resnet32": 64, "resnet18": 512, "resnet50": 2048}


def images(count=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def normalised(x, norm):
    """A batch normalisation in evaluation mode."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


def features_of(network, pixels, last_relu):
    """Sec. 4.2 of He et al., from the network's convolutions in their order."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 31

    def convolve(x, number, stride):
        out = F.conv2d(x, convolutions[number].weight, stride=stride, padding=1)
        return normalised(out, norms[number])

    x = convolve((pixels.double() - 127.5) / 127.5, 0, 1).relu()
    for number in range(1, 31, 2):
        stride = 2 if number in (11, 21) else 1
        out = convolve(convolve(x, number, stride).relu(), number + 1, 1)
        if stride == 2:
            assert out.shape[1] == 2 * x.shape[1]
            x = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], dim=1)
        x = out + x
        if last_relu or number < 29:
            x = x.relu()
    return x.mean(dim=(2, 3))


@pytest.mark.parametrize("last_relu", [True, False])
def test_resnet32_is_that_of_the_paper(last_relu):
    network = build_embedder(EmbedderSettings(**PLAIN, last_relu=last_relu), seed=1).double().eval()
    with torch.no_grad():
        for number, norm in enumerate(
            m for m in network.modules() if isinstance(m, nn.BatchNorm2d)
        ):
            generator = torch.Generator().manual_seed(number)
            for tensor in (norm.running_mean, norm.bias):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
            for tensor in (norm.running_var, norm.weight):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        found = network(images())
        torch.testing.assert_close(found, features_of(network, images(), last_relu))
    assert found.shape == (3, 64)
    assert bool((found < 0).any()) != last_relu


def test_resnet32_has_the_papers_number_of_weights():
    network = build_embedder(EmbedderSettings(**PLAIN))
    stages = [(16, 16, 10), (16, 32, 1), (32, 32, 9), (32, 64, 1), (64, 64, 9)]
    kernels = 9 * (3 * 16 + sum(i * o * layers for i, o, layers in stages))
    norms = 2 * (16 + 10 * (16 + 32 + 64))
    assert sum(p.numel() for p in network.parameters()) == kernels + norms
    assert (kernels + norms + 10 * 64 + 10) // 10_000 == 46  # 0.46 million, Table 6
    spread = network.trunk[3].conv1.weight.detach().std()
    assert float(spread) == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("architecture", FEATURES)
def test_without_the_last_relu_nothing_else_changes(architecture):
    size = FEATURES[architecture]
    given = {"architecture": architecture, "projection": "none", "dimension": size, "width": 1}
    usual = build_embedder(EmbedderSettings(**given)).eval()
    without = build_embedder(EmbedderSettings(**given, last_relu=False)).eval()
    assert EmbedderSettings(**given).features == size
    weights = {name.replace(".block.", "."): w for name, w in without.state_dict().items()}
    assert weights.keys() == usual.state_dict().keys()
    usual.load_state_dict(weights)
    maps = []
    pools = [
        next(m for m in n.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
        for n in (usual, without)
    ]
    for pool in pools:
        pool.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
    with torch.no_grad():
        usual(images()), without(images())
    assert (maps[1] < 0).any()
    torch.testing.assert_close(maps[0], maps[1].relu())


def test_cosine_gives_the_direction_and_learns_its_length():
    settings = EmbedderSettings(**PLAIN, last_relu=False, activation="cosine")
    network = build_embedder(settings).double().eval()
    plain = build_embedder(settings.model_copy(update={"activation": "none"})).double().eval()
    assert {*network.state_dict()} - {*plain.state_dict()} == {"activation.eta"}
    features, found = plain(images()), network(images())
    torch.testing.assert_close(found, features / features.norm(dim=1, keepdim=True))
    with torch.no_grad():
        network.activation.eta.fill_(3.0)
    scaled = network(images())
    torch.testing.assert_close(scaled, 3 * found)
    pull = torch.randn_like(scaled)
    (scaled * pull).sum().backward()
    torch.testing.assert_close(network.activation.eta.grad, (found * pull).sum().detach()[None])
    # whatever the features' length
    activation = network.activation
    torch.testing.assert_close(activation(features), activation(7 * features))


def test_an_embedding_without_projection_is_as_long_as_the_features():
    for architecture, size in FEATURES.items():
        given = {"architecture": architecture, "projection": "none", "width": 1}
        EmbedderSettings(**given, dimension=size)
        with pytest.raises(ValidationError, match=f"set dimension={size}"):
            EmbedderSettings(**given, dimension=size + 1)


@pytest.mark.parametrize("architecture", FEATURES)
@pytest.mark.parametrize("projection", ["linear", "none"])
def test_a_network_has_more_weights_than_the_lower_bound(architecture, projection):
    dimension = FEATURES[architecture] if projection == "none" else 24
    settings = EmbedderSettings(
        architecture=architecture, projection=projection, dimension=dimension, width=1
    )
    with torch.device("meta"):
        numbers = sum(p.numel() for p in build_embedder(settings).parameters())
    assert 0 < settings.least_numbers() <= numbers


def test_networks_of_before_are_spelled_as_they_were():
    released = {"architecture", "dimension", "width", "depth", "stem", "activation"}
    assert EmbedderSettings().deciding().keys() == released
    changed = EmbedderSettings(**PLAIN, last_relu=False).deciding()
    assert changed.keys() == {*released, "projection", "last_relu"}
