"""A network's blocks are found by what it makes of images, and left as they were."""

import pytest
import torch

from trainer.backbones import EmbedderSettings, build_embedder
from trainer.blocks import blocks, per_place, watched

SHAPES = {
    "small": [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)],
    "resnet32": [(16, 32, 32), (32, 16, 16), (64, 8, 8)],
    "resnet18": [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)],
    "resnet50": [(256, 8, 8), (512, 4, 4), (1024, 2, 2), (2048, 1, 1)],
}


def images(count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("last_relu", [True, False])
def test_every_architecture_has_the_papers_blocks(architecture, last_relu):
    settings = EmbedderSettings(
        architecture=architecture, width=2, dimension=8, last_relu=last_relu
    )
    embedder = build_embedder(settings).eval()
    with watched(blocks(embedder, (32, 32))) as made, torch.inference_mode():
        embedder(images())
    assert [tuple(one.shape[1:]) for one in made.values()] == SHAPES[architecture]
    assert list(made) == [f"block {n}" for n in range(1, len(made) + 1)]
    assert (made[f"block {len(made)}"] < 0).any() != last_relu


def test_the_small_stem_begins_block_1():
    embedder = build_embedder(EmbedderSettings(architecture="resnet18", stem="small"))
    found = blocks(embedder, (16, 16))
    trunk = embedder.trunk
    assert list(found.values()) == [trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4]


def test_looking_changes_nothing():
    embedder = build_embedder(EmbedderSettings(width=2, dimension=8))
    before = {name: value.clone() for name, value in embedder.state_dict().items()}
    plain = embedder.eval()(images())
    embedder.train()
    with watched(blocks(embedder, (32, 32))):
        pass
    assert embedder.training
    assert all(torch.equal(before[n], value) for n, value in embedder.state_dict().items())
    with watched(blocks(embedder.eval(), (32, 32))):
        assert torch.equal(embedder(images()), plain)
    assert not any(module._forward_hooks for module in embedder.modules())


def test_every_place_of_every_image_is_a_sample():
    made = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    places = [made[b, :, y, x] for b in range(2) for y in range(4) for x in range(5)]
    assert torch.equal(per_place(made), torch.stack(places))
    assert per_place(made[:, :, 0, 0]).shape == (2, 3)
