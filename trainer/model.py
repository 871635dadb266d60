"""A finished model: embedder, rows and card, as a folder that anything can read.

``embedder.safetensors``, ``rows-*.safetensors`` with global row ids, ``classifier.safetensors``
with the running statistics of its margin, ``card.json``: never a pickle. Models from outside
(`trainer.adopted`) have ``names.safetensors``, too, when their classifier came with them.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from data_shards.files import fingerprint
from trainer.adopted import AdoptedEmbedder, AdoptedSettings, build_adopted
from trainer.backbones import Embedder, EmbedderSettings, build_embedder
from trainer.checkpoint import Fence, Folder, save_folder, unfenced
from trainer.checkpoint.rows import load_rows, part_name
from trainer.heads.classifier import Classifier, ClassifierSettings
from trainer.heads.collectives import Ranks
from trainer.heads.rows import ShardedRows


@dataclass(frozen=True)
class Model:
    """A model on disk, verified."""

    folder: Path
    settings: EmbedderSettings | AdoptedSettings
    classifier: ClassifierSettings
    rows: int
    """Identities it knows."""
    fingerprint: str
    """Changes whenever any of its files does."""

    @classmethod
    def open(cls, folder: Path) -> "Model":
        """Verifies a model folder. Raises DamagedError naming the file and the remedy."""
        saved = Folder.at(folder)
        saved.verify()
        card = saved.card("model")
        adopted = "source" in card["embedder"]
        kind = AdoptedSettings if adopted else EmbedderSettings
        settings: EmbedderSettings | AdoptedSettings = kind.model_validate(card["embedder"])
        classifier = ClassifierSettings.model_validate(card.get("classifier", {}))
        return cls(folder, settings, classifier, card["rows"], fingerprint(saved.hashes))

    @property
    def adopted(self) -> bool:
        """Whether it was not trained here, so that its embedder cannot be trained on."""
        return isinstance(self.settings, AdoptedSettings)

    def embedder(self) -> Embedder | AdoptedEmbedder:
        """Its embedder, in evaluation mode, on the CPU."""
        tensors = Folder.at(self.folder).tensors("embedder")
        if isinstance(self.settings, AdoptedSettings):
            return build_adopted(self.settings, tensors)
        embedder = build_embedder(self.settings)
        embedder.load_state_dict(tensors)
        return embedder.eval()

    def names(self) -> list[str]:
        """The identities of an adopted model's rows; none when it came without a classifier."""
        if not (self.adopted and self.rows):
            return []
        text = Folder.at(self.folder).tensors("names")["utf8"]
        return text.numpy().tobytes().decode().split("\n")

    def running(self) -> dict[str, torch.Tensor]:
        """The running statistics of its margin."""
        return Folder.at(self.folder).tensors("classifier")

    def sharded_rows(self, ranks: Ranks) -> ShardedRows:
        """This rank's part of its rows."""
        weight = load_rows(Folder.at(self.folder), "rows", 0, self.rows, ranks)["weight"]
        return ShardedRows(0, self.rows, weight, ranks)

    def frozen_rows(self, ranks: Ranks) -> ShardedRows:
        """This rank's part of its rows as its logits see them, without gradient."""
        weight = load_rows(Folder.at(self.folder), "rows", 0, self.rows, ranks)["weight"]
        frozen = ShardedRows(0, self.rows, self.classifier.directions(weight), ranks)
        return frozen.requires_grad_(False)


def save_model(
    folder: Path,
    settings: EmbedderSettings,
    classifier: Classifier,
    embedder: torch.nn.Module,
    blocks: list[ShardedRows],
    ranks: Ranks,
    fence: Fence = unfenced,
) -> None:
    """Writes the embedder and the rows of all `blocks` (old ones first) as a model folder."""
    ids = torch.cat([block.own_ids() for block in blocks])
    weight = torch.cat([block.weight.detach().cpu() for block in blocks])
    files = {part_name("rows", ranks): {"ids": ids, "weight": weight}}
    if ranks.rank == 0:
        files["embedder"] = dict(embedder.state_dict())
        files["classifier"] = classifier.running
    card = {
        "kind": "model",
        "embedder": settings.model_dump(),
        "classifier": classifier.settings.model_dump(),
        "rows": blocks[-1].last,
    }
    save_folder(folder, files, card, ranks, fence)


def save_adopted(
    folder: Path,
    settings: AdoptedSettings,
    tensors: dict[str, torch.Tensor],
    classifier: ClassifierSettings,
    weight: torch.Tensor,
    names: list[str],
) -> None:
    """Writes an embedder from outside as a model folder, with rows `weight` [C, d] of `names`."""
    ranks = Ranks()
    text = torch.frombuffer(bytearray("\n".join(names).encode() or b"\n"), dtype=torch.uint8)
    files = {
        "embedder": {name: tensor.contiguous() for name, tensor in tensors.items()},
        part_name("rows", ranks): {"ids": torch.arange(len(weight)), "weight": weight.contiguous()},
        "classifier": Classifier(classifier, 0, torch.device("cpu")).running,
        "names": {"utf8": text},
    }
    card = {
        "kind": "model",
        "embedder": settings.model_dump(mode="json"),
        "classifier": classifier.model_dump(),
        "rows": len(weight),
    }
    save_folder(folder, files, card, ranks)
