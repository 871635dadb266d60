"""Training on the memory alone, behind a step's main training, so that all classes count alike.

LUCIR's authors do it on ImageNet, and mnemonics after each step: a step's new classes have many
more images than old ones have exemplars, and the classifier leans towards them.
"""

from pydantic import Field, model_validator

from data_shards.settings import Settings
from trainer.optimizers import TrainingSettings


class Lessons(Settings):
    """A training in epochs, beside the step's main one."""

    epochs: int = Field(ge=1)
    """Passes over its images."""
    learning_rate: float = Field(gt=0)
    """At its start."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is divided by `decay`."""
    decay: float = Field(default=10.0, gt=1)
    """See `milestones`."""

    @model_validator(mode="after")
    def _milestones_come_in_order(self) -> "Lessons":
        inside = all(0 < m < self.epochs for m in self.milestones)
        if list(self.milestones) != sorted(set(self.milestones)) or not inside:
            raise ValueError(
                f"milestones {list(self.milestones)} must ascend and lie between 0 and epochs = "
                f"{self.epochs}"
            )
        return self

    def lessons(self, usual: TrainingSettings) -> TrainingSettings:
        """Its schedule, where the step's main training is made of the `usual` one: batch,
        optimiser, precision and the like are those."""
        own = {name: getattr(self, name) for name in Lessons.model_fields}
        return usual.model_copy(update={**own, "warmup": 0})


class FineTuning(Lessons):
    """How the model is trained on, on the exemplars of all classes that the step leaves, with the
    method's own losses. Defaults are those of LUCIR's authors for ImageNet."""

    epochs: int = Field(default=20, ge=1)
    """Passes over the exemplars."""
    learning_rate: float = Field(default=0.01, gt=0)
    """At its start."""
    milestones: tuple[int, ...] = (10,)
    """Epochs after which the learning rate is divided by `decay`."""
