"""Optimisers and learning-rate schedule of a training phase."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from data_shards.settings import UNDECIDING, Settings
from trainer.guard import GuardSettings

ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8


class TrainingSettings(Settings):
    """How long and how fast each learning step is trained."""

    iterations: int = Field(default=400, ge=1)
    """Optimiser updates a learning step. A method that trains on the images of all steps so far
    makes more, and has its milestones later, in proportion to the identities: as many epochs."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over a learning step's images, exemplars included, in place of `iterations`, which is
    then not read; `milestones` are epochs, too. None: `iterations` says."""
    batch: int = Field(default=128, ge=1)
    """Images in the global batch, over all workers."""
    accumulate: int = Field(default=1, ge=1)
    """Parts of the batch that are passed through the embedder one after the other, to save memory;
    batch normalisation then sees a part at a time."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Of the embedder and the classifier rows; `adamw` decays weights apart from the gradient."""
    row_state: Literal["fp32", "bf16", "int8"] = "fp32"
    """Precision of the rows' optimiser state; rows themselves are always fp32."""
    learning_rate: float = Field(default=0.05, gt=0)
    """At the start of each learning step."""
    milestones: tuple[int, ...] = ()
    """Iterations, or epochs where `epochs` is set, after which the learning rate is divided by
    `decay`."""
    decay: float = Field(default=10.0, gt=1)
    """What the learning rate is divided by at each milestone."""
    warmup: int = Field(default=0, ge=0)
    """Iterations over which the learning rate rises linearly from zero."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty on the embedder and the rows."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the embedder's matrix products; weights, losses and rows stay in fp32. `fp16` comes with a
    loss scale that adapts itself, for all workers together. `bf16` is computed in fp32 by a CPU
    without instructions for it."""
    zero: Annotated[Literal[0, 1, 2], UNDECIDING] = 0
    """DeepSpeed's ZeRO stage: the workers share out the embedder's optimiser state (1), and its
    gradients, too (2)."""
    checkpoint_every: Annotated[int, UNDECIDING] = Field(default=200, ge=1)
    """Iterations between checkpoints."""
    checkpoint_minutes: Annotated[float | None, UNDECIDING] = Field(default=None, gt=0)
    """Minutes between checkpoints, in place of `checkpoint_every`; the clock is read every
    `log_every` iterations."""
    checkpoint_url: Annotated[str | None, UNDECIDING] = None
    """Folder or fsspec URL (s3://..., gs://...) that checkpoints go to; none: the run folder."""
    keep_checkpoints: Annotated[int, UNDECIDING] = Field(default=2, ge=1)
    """Newest checkpoints kept within a phase; all are deleted once its model is written."""
    keep_every: Annotated[int | None, UNDECIDING] = Field(default=None, ge=1)
    """Iterations: of each span this long, the first checkpoint is kept, too, while the phase
    lasts."""
    log_every: Annotated[int, UNDECIDING] = Field(default=20, ge=1)
    """Iterations between lines of metrics.jsonl."""
    guard: GuardSettings = GuardSettings()
    """What happens when the loss or a gradient is not finite, or the loss jumps."""

    @field_validator("checkpoint_url")
    @classmethod
    def _path_from_anywhere(cls, url: str | None) -> str | None:
        """Makes a path absolute: workers run in other working directories."""
        return url if url is None or "://" in url else str(Path(url).absolute())

    @model_validator(mode="after")
    def _milestones_come_in_order(self) -> "TrainingSettings":
        unit = "iterations" if self.epochs is None else "epochs"
        last = self.iterations if self.epochs is None else self.epochs
        inside = all(0 < m < last for m in self.milestones)
        if list(self.milestones) != sorted(set(self.milestones)) or not inside:
            raise ValueError(
                f"milestones {list(self.milestones)} must ascend and lie between 0 and {unit} = "
                f"{last}"
            )
        return self

    def deciding(self) -> dict[str, Any]:
        values = super().deciding()
        # without epochs, as fingerprints were before there was this key
        del values["epochs" if self.epochs is None else "iterations"]
        if self.decay == type(self).model_fields["decay"].default:
            del values["decay"]
        return values


def schedule(
    settings: TrainingSettings, images: int, sees_all: bool, rows: Sequence[int], step: int
) -> TrainingSettings:
    """`settings` with the iterations and milestones of learning step `step`, on `images` images.

    `sees_all`: they are those of every step so far; see `for_all_data`.
    """
    if settings.epochs is None:
        return for_all_data(settings, rows, step) if sees_all else settings

    def iterations(epochs: int) -> int:
        return max(1, math.ceil(epochs * images / settings.batch))

    milestones = tuple(map(iterations, settings.milestones))
    update = {"iterations": iterations(settings.epochs), "milestones": milestones, "epochs": None}
    return settings.model_copy(update=update)


def for_all_data(settings: TrainingSettings, rows: Sequence[int], step: int) -> TrainingSettings:
    """The schedule of a step that trains on the images of every step up to `step`.

    `rows` are the numbers of identities learned after each step: iterations and milestones grow
    with them, so that a step has as many epochs as step 0.
    """

    def longer(iterations: int) -> int:
        return round(iterations * rows[step] / rows[0])

    milestones = tuple(map(longer, settings.milestones))
    update = {"iterations": longer(settings.iterations), "milestones": milestones}
    return settings.model_copy(update=update)


def learning_rate(settings: TrainingSettings, iteration: int) -> float:
    """The learning rate of `iteration` (from 0)."""
    drops = sum(iteration >= milestone for milestone in settings.milestones)
    rise = min(1.0, (iteration + 1) / settings.warmup) if settings.warmup else 1.0
    return settings.learning_rate * rise / settings.decay**drops


def reach(settings: TrainingSettings, rate: float) -> float:
    """How far a gradient moves a weight in the end, per unit, at learning rate `rate`.

    Momentum repeats each gradient, a bit less every time.
    """
    return rate / (1 - settings.momentum) if settings.optimizer == "sgd" else rate


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], settings: TrainingSettings
) -> torch.optim.Optimizer:
    """The optimiser of `settings` for `parameters`."""
    if settings.optimizer != "sgd":
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
        return kind(
            parameters,
            lr=settings.learning_rate,
            betas=ADAM_BETAS,
            eps=ADAM_EPSILON,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
