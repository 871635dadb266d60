"""The networks of published papers, one file a family: images [b, 3, H, W] → features [b, n].

A new one is a file here, a line in `NETWORKS`, and its name in `EmbedderSettings.architecture`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from trainer.networks.iresnet import FEATURES as OF_IRESNET
from trainer.networks.iresnet import iresnet
from trainer.networks.mobilefacenet import FEATURES as OF_MOBILEFACENET
from trainer.networks.mobilefacenet import mobilefacenet
from trainer.networks.osnet import FEATURES as OF_OSNET
from trainer.networks.osnet import osnet
from trainer.networks.vit import FEATURES as OF_VIT
from trainer.networks.vit import vit


@dataclass(frozen=True)
class Network:
    """How to build a network that is not torchvision's, and what is known before it is built."""

    build: Callable[[], nn.Module]
    features: int
    """How many numbers it makes of an image."""
    weights: int
    """A lower bound of how many it has."""
    head: Mapping[str, str] = field(default_factory=dict)
    """What released weights call the embedder's projection and the normalisation behind it."""


_FC = {"project": "fc", "norm": "features"}
NETWORKS: dict[str, Network] = {
    "iresnet18": Network(partial(iresnet, "iresnet18"), OF_IRESNET, 11_000_000, _FC),
    "iresnet34": Network(partial(iresnet, "iresnet34"), OF_IRESNET, 21_000_000, _FC),
    "iresnet50": Network(partial(iresnet, "iresnet50"), OF_IRESNET, 30_000_000, _FC),
    "iresnet100": Network(partial(iresnet, "iresnet100"), OF_IRESNET, 52_000_000, _FC),
    "mobilefacenet": Network(mobilefacenet, OF_MOBILEFACENET, 900_000),
    "mobilefacenet_relu6": Network(partial(mobilefacenet, relu6=True), OF_MOBILEFACENET, 900_000),
    "osnet": Network(osnet, OF_OSNET, 1_900_000, {"project": "fc.0", "norm": "fc.1"}),
    "vit_s8": Network(partial(vit, 8), OF_VIT, 21_000_000),
    "vit_s16": Network(partial(vit, 16), OF_VIT, 21_000_000),
}
