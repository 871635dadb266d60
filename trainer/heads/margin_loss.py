"""The sharded classifier: its margin, which rows take part, and how much memory it may use."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch.nn import functional as F

from data_shards.settings import UNDECIDING, Bytes, Settings
from trainer.heads.cross_entropy import RankRows, Update, cross_entropy
from trainer.heads.margins import Cosine, Margin, Softmax
from trainer.heads.row_state import noise
from trainer.heads.rows import ShardedRows
from trainer.processor import multiplies_bf16


class ClassifierSettings(Settings):
    """What the classifier computes, and in how much memory."""

    margin: Margin = Softmax()
    """The softmax loss: softmax (linear logits), cosine (linear logits of unit rows),
    norm_softmax, cosface, arcface, combined or adaface."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the factors of its matrix products; logits, rows and sums stay in fp32."""
    sampled: float = Field(default=1.0, gt=0, le=1)
    """Share of the negative rows that take part in an iteration (Partial FC); 1: all of them."""
    memory: Annotated[Bytes | None, UNDECIDING] = Field(default=None, ge=1)
    """Room for logits, such as 2GB, or a number of bytes: they are then computed twice, a block at
    a time. None: one buffer of global batch x own rows keeps them."""

    @property
    def scale(self) -> float | None:
        """s, what cosines are multiplied by; none: logits are linear in embeddings."""
        return self.margin.scale

    @property
    def unit_rows(self) -> bool:
        """Whether logits are of rows with unit length."""
        return self.margin.unit_rows

    def inputs(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What rows are multiplied with: [B, d] embeddings, or s times unit embeddings."""
        return embeddings if self.scale is None else F.normalize(embeddings) * self.scale

    def directions(self, weight: torch.Tensor) -> torch.Tensor:
        """Rows [n, d] as the logits see them: as they are, or with unit length."""
        return F.normalize(weight) if self.unit_rows else weight


class Part(NamedTuple):
    """Which part of a global batch is looked at, where one does not go through in one piece."""

    number: int
    """From 0."""
    labels: torch.Tensor
    """[B] int64, of the whole global batch."""


class MarginLoss:
    """The classification losses of `ClassifierSettings`, and the margin's running statistics."""

    def __init__(self, settings: ClassifierSettings, seed: int, device: torch.device) -> None:
        """`seed` decides which rows are drawn."""
        self.settings, self._seed = settings, seed
        margin = settings.margin
        self.running: dict[str, torch.Tensor] = {}
        if not isinstance(margin, Softmax | Cosine):
            self.running = {name: value.to(device) for name, value in margin.initial().items()}
        self._before = self.running
        self._norms: list[torch.Tensor] = []

    def restore(self, running: Mapping[str, torch.Tensor]) -> None:
        """Puts running statistics back; those of another margin are not taken."""
        if running.keys() == self.running.keys():
            for name, value in running.items():
                self.running[name].copy_(value)

    def losses(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        rows: ShardedRows,
        iteration: int = 0,
        update: Update | None = None,
        part: Part | None = None,
        *,
        observe: bool = True,
    ) -> torch.Tensor:
        """Each sample's softmax cross-entropy with the margin, over the rows of all ranks: [B].

        `embeddings` [B, d] and `labels` [B] int64 (global row ids within `rows`) are equal on every
        rank. Rows that require no gradient get none, and cost none. Where they are a `part` of the
        batch, the rows drawn are those of the whole batch. Running statistics move by the batch
        unless `observe` is false or the rows are frozen. Raises ValueError for a label beyond
        `rows`; on a GPU, when the device gets there.
        """
        check_labels(labels, rows)
        place, owned = rows.local(labels)
        chosen = valid = None
        if self.settings.sampled < 1:
            targets = (place, owned) if part is None else rows.local(part.labels)
            chosen, valid, places = self._draw(rows, *targets, iteration)
            place = places[place] if len(places) else place
        margin, scale = self.settings.margin, self.settings.scale
        if isinstance(margin, Softmax | Cosine):

            def target(logit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return logit, torch.ones_like(logit)

        else:
            norms = torch.linalg.vector_norm(embeddings.detach(), dim=1)
            if observe and rows.weight.requires_grad:  # a finished model's statistics stay
                self._observe(norms, part)
            assert scale is not None

            def target(logit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                value, slope = margin.target(logit / scale, norms, self.running)
                return value * scale, slope

        shard = RankRows(
            weight=rows.weight.detach(),
            chosen=chosen,
            valid=valid,
            place=torch.where(owned, place, -1),
            ranks=rows.ranks,
            normalised=self.settings.unit_rows,
            half=self.settings.precision == "bf16" and multiplies_bf16(embeddings.device),
            target=target,
            budget=self.settings.memory,
            update=update,
            frozen=not rows.weight.requires_grad,
        )
        return cross_entropy(self.settings.inputs(embeddings), rows.weight, shard)

    def _observe(self, norms: torch.Tensor, part: Part | None) -> None:
        """Moves the running statistics by a batch's norms [B], or those of its parts until now.

        Either way they move once an update, from where they were before it.
        """
        margin = self.settings.margin
        assert not isinstance(margin, Softmax | Cosine), "linear logits have no statistics"
        if part is None or part.number == 0:
            self._before = {name: value.clone() for name, value in self.running.items()}
            self._norms = []
        self._norms.append(norms)
        for name, value in self._before.items():
            self.running[name].copy_(value)
        margin.observe(torch.cat(self._norms), self.running)

    def _draw(
        self, rows: ShardedRows, place: torch.Tensor, owned: torch.Tensor, iteration: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """This rank's rows that take part: all targets, and some others.

        Whether a row is drawn depends on (seed, iteration, row id) alone: another draw on every
        rank, and the same draw at any world size and after any resume. Returns the rows [n], which
        of them are valid (none: all), and the place among them of each row that takes part [own].
        """
        ids, rate = rows.own_ids().to(place.device), self.settings.sampled
        count = ids.new_full((1,), (self._seed * 1_000_003 + iteration) % 2**31)
        taken = torch.zeros(len(ids) + 1, dtype=torch.bool, device=place.device)
        taken[:-1] = noise(ids, count, 1)[:, 0] < rate * 2**16
        taken[torch.where(owned, place, len(ids))] = True
        taken = taken[:-1]
        places = taken.cumsum(0) - 1
        if not place.is_cuda:
            return taken.nonzero()[:, 0], None, places
        # a GPU would have to wait for the number of rows: take room for six standard deviations
        room = len(ids) * rate + 6 * math.sqrt(len(ids) * rate * (1 - rate)) + len(place)
        chosen = torch.argsort(~taken, stable=True)[: math.ceil(room)]
        return chosen, taken[chosen], places


def check_labels(labels: torch.Tensor, rows: ShardedRows) -> None:
    """Raises ValueError for labels that are no int64 or beyond `rows`; waits for no GPU."""
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, these are {labels.dtype}: convert them")
    good = ((labels >= rows.first) & (labels < rows.last)).all()
    allowed = f"a label lies beyond the classifier's rows {rows.first} to {rows.last - 1}"
    if labels.is_cuda:
        torch._assert_async(good, allowed)
    elif not good:
        wrong = labels[(labels < rows.first) | (labels >= rows.last)][0]
        raise ValueError(f"{allowed}: {int(wrong)}; check the benchmark's split")
