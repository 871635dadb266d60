"""What the toy paper wants of earlier phases: an expert of the step's new identities."""

from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.checkpoint import Folder
from trainer.heads.collectives import Ranks
from trainer.methods.wants import Want


@dataclass(frozen=True)
class ToyExpert(Want):
    """A model that is trained on the new identities alone."""

    iterations: int
    """How long."""

    def load(self, path: Path, ranks: Ranks, device: torch.device) -> dict[str, torch.Tensor]:
        """Its embedder's tensors by name."""
        tensors = Folder.at(path).tensors("embedder")
        return {name: tensor.to(device) for name, tensor in tensors.items()}
