"""Networks for faces and persons: published sizes, the images they take, what depends on them."""

import pytest
import torch
from torch import nn

from data_shards.settings import InputError
from launch.models.adopt import OURS
from trainer.attention import grad_cam
from trainer.backbones import EmbedderSettings, build_embedder
from trainer.batch_norm import measure_batch_norm
from trainer.blocks import blocks, shapes
from trainer.entrance import Entrance
from trainer.footprint import embedder_footprint
from trainer.networks import NETWORKS
from trainer.optimizers import TrainingSettings

PUBLISHED = {
    # millions of weights with a last layer to 512 numbers: released logs of InsightFace
    "iresnet18": (24.0, 512),
    "iresnet34": (34.1, 512),
    "iresnet50": (43.6, 512),
    "iresnet100": (65.2, 512),
    "mobilefacenet": (1.00, 128),  # Chen et al. write 0.99, see below
    "osnet": (2.2, 512),  # Zhou et al. 2019, Table 3
}
SMALL = ("mobilefacenet", "mobilefacenet_relu6", "osnet")


def settings(name, **given):
    return EmbedderSettings(architecture=name, dimension=128 if "mobile" in name else 512, **given)


def size_of(name):
    return (256, 128) if name in ("osnet", "resnet50_ibn_a") else (112, 112)


def weights(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_number_of_weights(name):
    millions, dimension = PUBLISHED[name]
    with torch.device("meta"):
        network = build_embedder(EmbedderSettings(architecture=name, dimension=dimension))
    decimals = 2 if millions < 2 else 1
    assert round(weights(network) / 1e6, decimals) == millions


@pytest.mark.parametrize("name", OURS)
def test_lower_bounds_are_below_the_number_of_weights(name):
    with torch.device("meta"):
        network = build_embedder(settings(name))
    assert 0 < settings(name).least_numbers() <= weights(network)


def test_mobilefacenet_has_what_the_paper_counts():
    """0.99 million: without the batch normalisations and PReLUs it lists none of."""
    network = build_embedder(settings("mobilefacenet"))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert 0.95 < sum(m.weight.numel() for m in layers) / 0.99e6 < 1


def test_others_have_the_numbers_of_what_they_are_made_of():
    with torch.device("meta"):
        ibn, plain = (build_embedder(settings(name)) for name in ("resnet50_ibn_a", "resnet50"))
        vit = NETWORKS["vit_s16"].build()
    assert weights(ibn) == weights(plain)
    # 22.05 million of DeiT-S are with 1,000 classes, a class token and its place
    assert weights(vit) + 384 * 1000 + 1000 + 2 * 384 == 22_050_664


@pytest.mark.parametrize(
    "name", ["iresnet18", "mobilefacenet", "osnet", "resnet50_ibn_a", "vit_s16"]
)
def test_footprints_and_blocks_are_those_of_the_network(name):
    size = (224, 224) if name == "vit_s16" else size_of(name)
    with torch.device("meta"):
        network = build_embedder(settings(name))
        made = {id(part): shape for part, shape in shapes(network, size)}
        found = blocks(network, size)
    assert list(found) == ["block 1", "block 2", "block 3", "block 4"]
    assert all(len(made[id(part)]) == 4 and made[id(part)][2] > 1 for part in found.values())
    training = TrainingSettings(batch=2, precision="bf16")
    assert embedder_footprint(settings(name), size, training, 2).gradients == 4 * weights(network)


@pytest.mark.parametrize("name", [*SMALL, "vit_s8", "iresnet18", "resnet50_ibn_a"])
def test_networks_train_on_their_images_and_show_where_they_look(name):
    network, size = build_embedder(settings(name)).train(), size_of(name)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        made = network(images)
    assert made.shape == (2, settings(name).dimension)
    made.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    maps = grad_cam(network.eval(), images, lambda embeddings: embeddings[:, 0])
    assert maps.shape[0] == 2 and maps.min() >= 0
    features = Entrance(network, "block 3", size).until(images)
    with torch.inference_mode():
        joined = Entrance(network, "block 3", size).embedded(features)
        torch.testing.assert_close(joined, network(images), rtol=1e-4, atol=1e-4)


def test_a_vit_takes_other_sizes_and_refuses_what_it_cannot_cut():
    network = build_embedder(settings("vit_s16")).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 32, dtype=torch.uint8)).shape == (1, 512)
        with pytest.raises(InputError, match="squares of 16 pixels"):
            network(torch.zeros(1, 3, 65, 32, dtype=torch.uint8))
    with pytest.raises(InputError, match="has one convolution"):
        build_embedder(settings("vit_s16", convolutions="channels"))


@pytest.mark.parametrize("name", ["iresnet18", "mobilefacenet"])
def test_networks_of_faces_refuse_other_sizes(name):
    with torch.device("meta"), torch.inference_mode():
        network = build_embedder(settings(name)).eval()
        with pytest.raises(InputError, match="for images of 112x112"):
            network(torch.zeros(1, 3, 256, 128, dtype=torch.uint8))


@pytest.mark.parametrize("given", [{"last_relu": False}, {"stem": "small"}])
def test_settings_that_a_network_has_not_got_are_refused(given):
    with pytest.raises(ValueError, match="is not for osnet"):
        settings("osnet", **given)


def test_measured_statistics_change_nothing_but_what_training_normalises_by():
    torch.manual_seed(0)
    network = build_embedder(EmbedderSettings(width=4, dimension=8))
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)):
        nn.init.normal_(norm.bias)
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.eval()(images)
        measure_batch_norm(network, [images[:32], images[32:]])
        torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-4)
        # a batch that has just these statistics is normalised alike in training
        torch.testing.assert_close(network.train()(images), expected, rtol=1e-2, atol=1e-2)
