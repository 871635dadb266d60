"""What the previous model says: computed ahead on CPU, or along with training.

``cached`` reads files that the neighbourhood phase wrote for the plain and mirrored view.
``online`` runs the frozen model in the training loop on the very image that was augmented.
"""

from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.pipeline import Batch
from data_shards.settings import Settings
from data_shards.storage.neighbours import TeacherCache
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import ClassifierSettings
from trainer.heads.neighbourhood import sharded_top_k, top_k
from trainer.heads.rows import ShardedRows
from trainer.methods.forward import OldClassifier, Teacher
from trainer.methods.wants import Answers


class TeacherSettings(Settings):
    """How the previous model is asked."""

    mode: Literal["cached", "online"] = "cached"
    """Ahead of training, on CPU, for the image and its mirror image; or on the training device
    with the very view that is trained on, which `shift` and `erase` of the augmentation ask for."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the cached forward pass. bf16 pays where the CPU has instructions for it, and is
    fp32 where it has none."""
    compile: bool = False
    """Compile the cached forward pass: worth its half minute from about 50,000 images on."""
    batch: int = 64
    """Images a forward pass of the neighbourhood phase."""


class TeacherSource(Protocol):
    """Answers for this rank's batch, gathered over the ranks."""

    def __call__(self, batch: Batch, counts: list[int]) -> Teacher: ...


class CachedTeacher:
    """Looks answers up."""

    def __init__(self, cache: TeacherCache, old: OldClassifier) -> None:
        self._cache, self._old = cache, old

    def __call__(self, batch: Batch, counts: list[int]) -> Teacher:
        device, ranks = batch.images.device, self._old.rows.ranks
        held = self._cache.look_up(batch.samples, batch.flipped)

        def gathered(name: str, dtype: torch.dtype) -> torch.Tensor | None:
            if name not in held:
                return None
            return ranks.gather(torch.from_numpy(held[name]).to(device, dtype), counts)

        return self._old.teacher(
            embeddings=gathered("embeddings", torch.float32),
            classes=gathered("classes", torch.int64),
            activations=gathered("activations", torch.float32),
        )


class OnlineTeacher:
    """Runs the previous model on the batch."""

    def __init__(self, embedder: torch.nn.Module, old: OldClassifier, wanted: Answers) -> None:
        self._embedder, self._old, self._wanted = embedder.eval(), old, wanted

    @torch.no_grad()
    def __call__(self, batch: Batch, counts: list[int]) -> Teacher:
        old, rows = self._old, self._old.rows
        embeddings = rows.ranks.gather(self._embedder(batch.images), counts)
        if self._wanted.top_k is None:
            return old.teacher(embeddings=embeddings)
        inputs = old.classifier.settings.inputs(embeddings)
        classes, activations = sharded_top_k(inputs, rows, self._wanted.top_k)
        kept = embeddings if self._wanted.embeddings else None
        return old.teacher(embeddings=kept, classes=classes, activations=activations)


class ExpertSource(Protocol):
    """A temporary expert's embeddings [B, d] of a batch, gathered over the ranks."""

    def __call__(self, batch: Batch, counts: list[int]) -> torch.Tensor: ...


class CachedExpert:
    """Looks embeddings up."""

    def __init__(self, cache: TeacherCache, ranks: Ranks) -> None:
        self._cache, self._ranks = cache, ranks

    def __call__(self, batch: Batch, counts: list[int]) -> torch.Tensor:
        held = self._cache.look_up(batch.samples, batch.flipped)["embeddings"]
        return self._ranks.gather(torch.from_numpy(held).to(batch.images.device), counts)


class OnlineExpert:
    """Runs the expert on the batch."""

    def __init__(self, embedder: torch.nn.Module, ranks: Ranks) -> None:
        self._embedder, self._ranks = embedder.eval(), ranks

    @torch.no_grad()
    def __call__(self, batch: Batch, counts: list[int]) -> torch.Tensor:
        return self._ranks.gather(self._embedder(batch.images), counts)


class NoTeacher:
    """For recipes that want no `Answers`."""

    def __call__(self, batch: Batch, counts: list[int]) -> Teacher:
        return Teacher()


@torch.no_grad()
def answers(
    embeddings: torch.Tensor, rows: ShardedRows, classifier: ClassifierSettings, wanted: Answers
) -> dict[str, NDArray[np.generic]]:
    """What is cached of n images: what is `wanted`.

    `embeddings` [n, d], `rows` (as the logits see them) and `classifier` are the previous model's.
    """
    out: dict[str, NDArray[np.generic]] = {}
    if wanted.embeddings:
        out["embeddings"] = embeddings.float().numpy()
    if wanted.top_k is not None:
        scores = classifier.inputs(embeddings.float()) @ rows.weight.T
        classes, activations = top_k(scores, rows.own_ids(), wanted.top_k)
        out["classes"] = classes.to(torch.int32).numpy()
        out["activations"] = activations.numpy()
    return out
