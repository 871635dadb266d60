"""A conditional WGAN as the folder that a learning step leaves."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from trainer.checkpoint import Folder
from trainer.replay.source import CARD, generator_files, read_generator
from trainer.replay.wgan import ClassMeans, Critic, Generator, Wgan, WganShape
from trainer.replay.wgan_settings import WganSettings

_FACTS = ("dimension", "relu", "rows")
"""What the card says beside what the settings do."""


@dataclass(frozen=True, repr=False)
class Wgans:
    """A conditional WGAN for all identities; see `GeneratorKind`."""

    settings: WganSettings = WganSettings()
    of: ClassVar[str] = "wgan"

    def __repr__(self) -> str:
        """As fingerprints spell it."""
        return f"Wgans({self.settings.deciding()})"

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
        usual = self.settings
        settled = {name: getattr(usual, name) for name in ("noise", "width", "class_input")}
        tensors = read_generator(folder, self, **settled)
        card = folder.card(CARD)
        with folder.intact("generator.safetensors"):
            dimension, relu, rows = (card[name] for name in _FACTS)
            shape = WganShape(dimension=dimension, relu=relu, **settled)
            means = None
            if shape.class_input == "mean":
                means = ClassMeans(**_named(tensors, "classes"))
            known = tensors["generator.of_class.weight"] if means is None else means.means
            last = tensors["generator.last.weight"].shape
            # before networks of that size are made
            if (len(known), last) != (rows, (shape.dimension, shape.width)):
                raise ValueError("its card speaks of other networks")
            if tensors["generator.of_noise.weight"].shape != (shape.width, shape.noise):
                raise ValueError("its card speaks of other networks")
            networks = Wgan.built(shape, rows, means, 0)
            networks.generator.load_state_dict(_named(tensors, "generator"))
            networks.critic.load_state_dict(_named(tensors, "critic"))
        return networks

    def read(self, folder: Folder, device: torch.device) -> Generator:
        """See `GeneratorKind`."""
        return self.networks(folder).generator.to(device)

    def imagined(self, rows: int, dimension: int) -> Generator:
        """See `GeneratorKind`."""
        return Generator(*self._imagined(rows, dimension))

    def beside(self, rows: int, dimension: int) -> int:
        """The critic, which only the next generator's training needs."""
        with torch.device("meta"):
            critic = Critic(*self._imagined(rows, dimension))
        return sum(p.nbytes for p in critic.parameters())

    def _imagined(self, rows: int, dimension: int) -> tuple[WganShape, int, ClassMeans | None]:
        shape, means = self.settings.shape(dimension, relu=False), None
        if shape.class_input == "mean":
            means = ClassMeans.of(torch.empty(rows, dimension))
        return shape, rows, means


def _named(tensors: dict[str, torch.Tensor], first: str) -> dict[str, torch.Tensor]:
    """Those whose names begin with `first` and a dot, by the rest."""
    return {
        name.removeprefix(f"{first}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{first}.")
    }
