"""Grad-CAM against closed forms and finite differences."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from trainer.attention import at_size, grad_cam
from trainer.backbones import Embedder, EmbedderSettings, build_embedder
from trainer.blocks import blocks

BARE = EmbedderSettings(architecture="resnet32", projection="none", dimension=64)


def images(count, side, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draws)


def one_convolution(weight):
    """A convolution of `weight` [c, 3, 3, 3] without padding, and the mean over places."""
    convolution = nn.Conv2d(3, len(weight), 3, bias=False)
    convolution.weight.data = weight
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    trunk = nn.Sequential(nn.Sequential(convolution), pool)
    return Embedder(trunk, BARE).double().eval()


def by_hand(image, weight):
    """[c, h, w] the convolution of one image, place by place."""
    pixels = (image.double().numpy() - 127.5) / 127.5
    side = pixels.shape[1] - 2
    made = np.zeros((len(weight), side, side))
    for channel, y, x in itertools.product(range(len(weight)), range(side), range(side)):
        made[channel, y, x] = (pixels[:, y : y + 3, x : x + 3] * weight[channel].numpy()).sum()
    return made


def test_behind_a_mean_over_places_it_is_the_classifiers_weights():
    """The mean's derivative is 1 / (h w) everywhere: the map is relu(sum of v_k A_k) / (h w)."""
    draws = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=draws)
    rows = torch.randn(2, 4, dtype=torch.float64, generator=draws)
    own = images(2, 7)
    found = grad_cam(one_convolution(weight), own, lambda vectors: (vectors * rows).sum(dim=1))
    for image, row, drawn in zip(own, rows.numpy(), found.numpy(), strict=True):
        expected = np.maximum(np.tensordot(row, by_hand(image, weight), 1), 0) / 25
        np.testing.assert_allclose(drawn, expected, atol=1e-12)
    assert (found > 0).any() and (found == 0).any(), "else nothing was cut"


def test_where_all_speaks_against_the_class_the_map_is_zero():
    weight = torch.ones(2, 3, 3, 3, dtype=torch.float64)
    white = torch.full((1, 3, 6, 6), 255, dtype=torch.uint8)
    for sign, most in ((-1.0, 0.0), (0.0, 0.0), (1.0, 1.0)):
        found = grad_cam(one_convolution(weight), white, lambda v, s=sign: s * v.sum(dim=1))
        drawn = at_size(found, (6, 6))
        assert drawn.max() == most and torch.isfinite(drawn).all(), sign


def test_maps_are_drawn_to_size_with_their_largest_value_as_1():
    found = at_size(torch.tensor([[[0.0, 3.0], [0.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]]), (2, 4))
    assert found[0].tolist() == [[0.0, 0.25, 0.75, 1.0]] * 2, "bilinear"
    assert found[1].tolist() == [[0.0] * 4] * 2
    tiny = at_size(torch.full((1, 1, 1), 1e-40), (2, 2))
    assert torch.isfinite(tiny).all() and tiny.max() <= 1


def ready(embedder):
    """In evaluation mode, with running statistics that are not those of its start."""
    torch.manual_seed(5)
    for module in embedder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return embedder.double().eval()


NETWORKS = {
    "small": {"width": 2, "dimension": 6, "depth": 1},
    "small without its last ReLU": {"width": 2, "dimension": 6, "last_relu": False},
    "resnet32, cosine": {
        "architecture": "resnet32",
        "projection": "none",
        "dimension": 64,
        "last_relu": False,
        "activation": "cosine",
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_channel_weighs_what_the_logit_gains_by_raising_it_everywhere(name):
    """By finite differences: raising a channel by e at h w places adds e h w times its weight."""
    settings = EmbedderSettings(**NETWORKS[name])
    network, own = ready(build_embedder(settings)), images(1, 16)
    row = torch.linspace(-1, 1, settings.dimension, dtype=torch.float64)
    *_, last = blocks(network, (16, 16)).values()
    shift, made = torch.zeros(1, 1, 1, 1, dtype=torch.float64), []

    def raised(_, __, output):
        made.append(output)
        return output + shift

    hook = last.register_forward_hook(raised)
    with torch.no_grad():
        network(own)
        features = made[0][0].numpy()
        weights = np.zeros(len(features))
        for channel in range(len(features)):
            ends = []
            for step in (1e-5, -1e-5):
                shift = torch.zeros(1, len(features), 1, 1, dtype=torch.float64)
                shift[0, channel] = step
                ends.append(float(network(own)[0] @ row))
            weights[channel] = (ends[0] - ends[1]) / 2e-5 / features[0].size
    hook.remove()
    expected = np.maximum(np.tensordot(weights, features, 1), 0)
    found = grad_cam(network, own, lambda vectors: vectors @ row)[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-7 * max(1, np.abs(expected).max()))
    assert found.shape == features.shape[1:]


@pytest.mark.parametrize(
    ("architecture", "stem", "places"),
    [("resnet18", "small", 4), ("resnet18", "standard", 1), ("resnet50", "standard", 1)],
)
def test_residual_networks_have_maps_and_are_left_as_they_were(architecture, stem, places):
    network = build_embedder(
        EmbedderSettings(architecture=architecture, stem=stem, dimension=4)
    ).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    own = images(2, 32)
    found = grad_cam(network, own, lambda vectors: vectors[:, 1])
    assert found.shape == (2, places, places) and not found.requires_grad
    alone = grad_cam(network, own[1:], lambda vectors: vectors[:, 1])
    torch.testing.assert_close(found[1:], alone, rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[n]) for n, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
