"""A finished model: a folder with embedder, rows and card, in formats that any program can read.

``embedder.safetensors``, ``rows-*.safetensors`` with global row ids, ``names.safetensors`` with the
identity of each row, ``classifier.safetensors`` with the running statistics of its margin,
``card.json``: never a pickle. Embedders trained elsewhere are in `trainer.adopted`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, Field

from data_shards.files import fingerprint
from data_shards.settings import InputError
from trainer.adopted import AdoptedEmbedder, AdoptedSettings, build_adopted
from trainer.backbones import Embedder, EmbedderSettings, build_embedder
from trainer.checkpoint import DamagedError, Fence, Folder, save_folder, unfenced
from trainer.checkpoint.format import CARD
from trainer.checkpoint.rows import load_rows, part_name
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss
from trainer.heads.rows import ShardedRows

_Side = Annotated[int, Field(gt=0, le=1 << 16)]


class _Facts(BaseModel):
    """A card's keys beside its settings."""

    image_size: tuple[_Side, _Side] | None = None
    rows: int = Field(ge=0, lt=2**40)
    centre: float | None = Field(default=None, gt=0, le=1)


@dataclass(frozen=True)
class Model:
    """A model on disk, verified."""

    folder: Path
    settings: EmbedderSettings | AdoptedSettings
    classifier: ClassifierSettings
    image_size: tuple[int, int] | None
    """Height and width of the images it was trained on; none: of an adopted one, which resizes."""
    rows: int
    """Number of identities that it has learned."""
    fingerprint: str
    """A hash that changes whenever any of its files does."""
    centre: float | None = None
    """Which part in the middle of an image it is to be shown, see `PipelineSettings.centre`."""

    @classmethod
    def open(cls, folder: Path) -> "Model":
        """Verifies a model folder. Raises DamagedError naming the file and the remedy."""
        saved = Folder.at(folder)
        saved.verify()
        with saved.intact(CARD):
            card = saved.card("model")
            adopted = "source" in card["embedder"]
            if adopted and card["embedder"]["source"] in ("torchscript", "exported"):
                raise InputError(
                    f"{folder} holds a program, as older versions kept it, and opening a model "
                    "runs none: adopt the original file again, with --trust"
                )
            kind = AdoptedSettings if adopted else EmbedderSettings
            settings: EmbedderSettings | AdoptedSettings = kind.model_validate(card["embedder"])
            classifier = ClassifierSettings.model_validate(card.get("classifier", {}))
            facts = _Facts.model_validate(card)
        own = fingerprint(saved.hashes)
        return cls(folder, settings, classifier, facts.image_size, facts.rows, own, facts.centre)

    @property
    def adopted(self) -> bool:
        """Whether its network is none of ours, so that training cannot continue from it."""
        return isinstance(self.settings, AdoptedSettings)

    def embedder(self) -> Embedder | AdoptedEmbedder:
        """Its embedder, in evaluation mode, on the CPU."""
        saved = Folder.at(self.folder)
        tensors = saved.tensors("embedder")
        if isinstance(self.settings, AdoptedSettings):
            return build_adopted(self.settings, tensors)
        with saved.intact("embedder.safetensors"):
            numbers = sum(tensor.numel() for tensor in tensors.values())
            if self.settings.least_numbers() > numbers:
                raise ValueError("its card promises a larger network than there are weights for")
            embedder = build_embedder(self.settings)
            embedder.load_state_dict(tensors)
        return embedder.eval()

    def names(self) -> list[str]:
        """The identities of its rows, by name. Raises DamagedError."""
        names = row_names(self.folder) if self.rows else []
        if len(names) != self.rows:
            raise DamagedError(
                f"{self.folder} names {len(names):,} identities for {self.rows:,} rows: restore it "
                "from a copy"
            )
        return names

    def running(self) -> dict[str, torch.Tensor]:
        """The running statistics of its margin."""
        return Folder.at(self.folder).tensors("classifier")

    def sizes(self) -> dict[str, int]:
        """Bytes of its numbers: the network's with its running statistics, and the rows'."""
        numbers = Folder.at(self.folder).tensors("embedder").values()
        network = sum(tensor.numel() * tensor.element_size() for tensor in numbers)
        return {"network": network, "rows": 4 * self.rows * self.settings.dimension}

    def sharded_rows(self, ranks: Ranks) -> ShardedRows:
        """This rank's part of its rows."""
        weight = load_rows(
            folder=Folder.at(self.folder), block="rows", first=0, last=self.rows, ranks=ranks
        )["weight"]
        return ShardedRows(0, self.rows, weight, ranks)

    def frozen_rows(self, ranks: Ranks) -> ShardedRows:
        """This rank's part of its rows as used in its logits (normalised or not), frozen."""
        weight = load_rows(
            folder=Folder.at(self.folder), block="rows", first=0, last=self.rows, ranks=ranks
        )["weight"]
        frozen = ShardedRows(0, self.rows, self.classifier.directions(weight), ranks)
        return frozen.requires_grad_(False)


def row_names(folder: Path) -> list[str]:
    """The identities of the rows of the model in `folder`, by name. Raises DamagedError."""
    folder_of = Folder.at(folder)
    saved = folder_of.tensors("names")
    with folder_of.intact("names.safetensors"):
        if (saved["utf8"].dtype, saved["ends"].dtype) != (torch.uint8, torch.int64):
            raise ValueError("no names")
        text, ends = saved["utf8"].numpy().tobytes(), saved["ends"].tolist()
        # ascending: otherwise a few bytes could be copied a million times
        if any(not 0 <= first <= last <= len(text) for first, last in pairwise([0, *ends])):
            raise ValueError("its names lie outside of its text")
        return [text[first:last].decode() for first, last in pairwise([0, *ends])]


def _text(names: Sequence[str]) -> dict[str, torch.Tensor]:
    encoded = [name.encode() for name in names]
    text = torch.frombuffer(bytearray(b"".join(encoded) or b"-"), dtype=torch.uint8)
    return {"utf8": text, "ends": torch.tensor([*map(len, encoded)], dtype=torch.int64).cumsum(0)}


def save_model(
    folder: Path,
    settings: EmbedderSettings,
    image_size: tuple[int, int],
    classifier: MarginLoss,
    embedder: torch.nn.Module,
    blocks: list[ShardedRows],
    names: Sequence[str],
    ranks: Ranks,
    fence: Fence = unfenced,
    centre: float | None = None,
) -> None:
    """Writes the embedder and the rows of all `blocks` (old ones first) as a model folder.

    A collective call. `image_size` is the height and width trained on, `names` are the identities
    of all rows, `centre` is which part of images it is to be shown, if not the whole. Raises
    OSError on every rank when any could not write.
    """
    ids = torch.cat([block.own_ids() for block in blocks])
    weight = torch.cat([block.weight.detach().cpu() for block in blocks])
    files = {part_name("rows", ranks): {"ids": ids, "weight": weight}}
    if ranks.rank == 0:
        files["embedder"] = dict(embedder.state_dict())
        files["classifier"] = classifier.running
        files["names"] = _text(names)
    card = {
        "kind": "model",
        "embedder": settings.model_dump(),
        "image_size": image_size,
        "classifier": classifier.settings.model_dump(),
        "rows": blocks[-1].last,
        **({} if centre is None else {"centre": centre}),
    }
    save_folder(folder=folder, files=files, card=card, ranks=ranks, fence=fence)


def save_adopted(
    folder: Path,
    settings: AdoptedSettings | EmbedderSettings,
    tensors: dict[str, torch.Tensor],
    classifier: ClassifierSettings,
    weight: torch.Tensor,
    names: list[str],
    image_size: tuple[int, int] | None = None,
) -> None:
    """Writes an embedder from elsewhere as a model folder, with the rows `weight` [C, d] of
    `names`; with its `image_size` (height, width) where its network is one of ours."""
    ranks = Ranks()
    files = {
        "embedder": {name: tensor.contiguous() for name, tensor in tensors.items()},
        part_name("rows", ranks): {"ids": torch.arange(len(weight)), "weight": weight.contiguous()},
        "classifier": MarginLoss(classifier, 0, torch.device("cpu")).running,
        "names": _text(names),
    }
    card = {
        "kind": "model",
        "embedder": settings.model_dump(mode="json"),
        **({} if image_size is None else {"image_size": image_size}),
        "classifier": classifier.model_dump(),
        "rows": len(weight),
    }
    save_folder(folder, files, card, ranks)
