"""A conditional WGAN as the folder that a learning step leaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from trainer.checkpoint import Folder
from trainer.replay.conv import ConvShape
from trainer.replay.source import CARD, generator_files, read_generator
from trainer.replay.wgan import ClassMeans, ConditionalGenerator, NetworkShape, Wgan, WganShape
from trainer.replay.wgan_settings import ConvWganSettings, WganSettings

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, repr=False)
class Wgans:
    """A conditional WGAN for all identities; see `GeneratorKind`."""

    settings: WganSettings = WganSettings()
    of: ClassVar[str] = "wgan"
    _settled: ClassVar[tuple[str, ...]] = ("noise", "width", "class_input")
    """Settings that networks cannot be gone on with if they had others."""
    _shaped: ClassVar[type[WganShape] | type[ConvShape]] = WganShape

    def __repr__(self) -> str:
        """As fingerprints spell it."""
        return f"{type(self).__name__}({self.settings.deciding()})"

    def files(self, networks: Wgan, origin: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Files and card of the folder that `read` takes; `origin` names the training that made
        the networks."""
        tensors = {
            f"{name}.{of}": tensor
            for name, network in (("generator", networks.generator), ("critic", networks.critic))
            for of, tensor in network.state_dict().items()
        }
        if (held := networks.means) is not None:
            known = {"means": held.means, "shift": held.shift, "scale": held.scale}
            tensors |= {f"classes.{name}": tensor for name, tensor in known.items()}
        facts = {**networks.shape.model_dump(), "rows": networks.rows, "origin": origin}
        return generator_files(self, tensors, **facts)

    def networks(self, folder: Folder) -> Wgan:
        """Both, on the CPU. Raises DamagedError, and InputError for those of other settings."""
        settled = {name: getattr(self.settings, name) for name in self._settled}
        tensors = read_generator(folder, self, **settled)
        card = folder.card(CARD)
        with folder.intact("generator.safetensors"):
            shape = self._shaped(**{name: card[name] for name in self._shaped.model_fields})
            means = None
            if self.settings.class_input == "mean":
                means = ClassMeans(**_named(tensors, "classes"))
            rows = card["rows"]
            states = {name: _named(tensors, name) for name in ("generator", "critic")}
            self._check(shape, rows, means, states)
            networks = Wgan.built(shape, rows, means, 0)
            networks.generator.load_state_dict(states["generator"])
            networks.critic.load_state_dict(states["critic"])
        return networks

    @staticmethod
    def _check(
        shape: NetworkShape, rows: Any, means: ClassMeans | None, states: Mapping[str, Tensors]
    ) -> None:
        """Raises ValueError where the tensors are not those of such networks, before any of the
        size that a card promises are made."""
        known = states["generator"]["of_class.weight"] if means is None else means.means
        if len(known) != rows:
            raise ValueError("its card speaks of other classes")
        with torch.device("meta"):
            pair = {"generator": shape.generator(rows, means), "critic": shape.critic(rows, means)}
        for name, network in pair.items():
            wanted = {key: tensor.shape for key, tensor in network.state_dict().items()}
            if wanted != {key: tensor.shape for key, tensor in states[name].items()}:
                raise ValueError("its card speaks of other networks")

    def read(self, folder: Folder, device: torch.device) -> ConditionalGenerator:
        """See `GeneratorKind`."""
        return self.networks(folder).generator.to(device)

    def imagined(self, rows: int, shape: tuple[int, ...]) -> ConditionalGenerator:
        """See `GeneratorKind`."""
        return self.settings.shape_for(shape, "none").generator(rows, self._means(rows, shape))

    def beside(self, rows: int, shape: tuple[int, ...]) -> int:
        """The critic, which only the next generator's training needs."""
        with torch.device("meta"):
            networks = self.settings.shape_for(shape, "none")
            critic: nn.Module = networks.critic(rows, self._means(rows, shape))
        return sum(p.nbytes for p in critic.parameters())

    def _means(self, rows: int, shape: tuple[int, ...]) -> ClassMeans | None:
        means = self.settings.class_input == "mean"
        return ClassMeans.of(torch.empty(rows, *shape)) if means else None


@dataclass(frozen=True, repr=False)
class ConvWgans(Wgans):
    """One that draws images, or what a block of the network makes of them."""

    settings: ConvWganSettings = ConvWganSettings()
    of: ClassVar[str] = "conv-wgan"
    _settled: ClassVar[tuple[str, ...]] = ("noise", "width")
    _shaped: ClassVar[type[WganShape] | type[ConvShape]] = ConvShape


def _named(tensors: Tensors, first: str) -> dict[str, torch.Tensor]:
    """Those whose names begin with `first` and a dot, by the rest."""
    return {
        name.removeprefix(f"{first}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{first}.")
    }
