"""Settings of the memory that class-incremental methods keep of old identities' images."""

from typing import Literal

from pydantic import Field, model_validator

from data_shards.settings import Settings
from trainer.backbones import EmbedderSettings
from trainer.decisions import LargestLogit, LargestOfHeads, NearestMean, Rule
from trainer.methods.discriminative import DistilExpert, ExpertSettings, distilled
from trainer.methods.fine_tuning import FineTuning
from trainer.methods.images import Choice, Exemplars, ImageSource, NewImages
from trainer.methods.recipe import MethodSettings
from trainer.mnemonics.settings import MnemonicsSettings
from trainer.weight_transfer import Transfer


class MemorySettings(Settings):
    """How many images of old identities are kept, and which."""

    total: int | None = Field(default=None, ge=1)
    """K, exemplars in all, shared equally over the identities so far; 2,000 is the usual choice
    for CIFAR-100, 20,000 for ImageNet. None: `per_class` says."""
    per_class: int | None = Field(default=None, ge=1)
    """m, exemplars of each identity, however many there are; 20 is usual."""
    choose: Choice = "herding"
    """herding: those whose mean embedding comes nearest to their identity's; random: a draw;
    mnemonics: a draw, whose pixels are then learned, so that a model trained on them does well on
    the step's images."""
    adjust: bool = False
    """After each step the exemplars of earlier ones are learned, too, each half of a class' by how
    well a model that was trained on it does on the other half: however they were chosen."""
    mnemonics: MnemonicsSettings | None = None
    """How pixels are learned, with `choose: mnemonics` or `adjust`. None: as these keys are by
    default."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "MemorySettings":
        if (self.total is None) == (self.per_class is None):
            raise ValueError("say either total or per_class, such as memory: {per_class: 20}")
        if self.mnemonics is not None and not (self.adjust or self.choose == "mnemonics"):
            raise ValueError(
                f"memory.mnemonics says how pixels are learned, but with choose = {self.choose} "
                "and without adjust none are: set choose=mnemonics or adjust=true, or leave it out"
            )
        if self.adjust and self.per_class == 1:
            raise ValueError(
                "memory.adjust compares two halves of each class' exemplars, and per_class = 1 has "
                "none: keep 2 or more, or leave adjust out"
            )
        return self

    def source(self) -> Exemplars:
        """The exemplars as a source of training images."""
        learning = self.mnemonics or MnemonicsSettings()
        return Exemplars(self.per_class, self.total, self.choose, learning, self.adjust)


def check_expert(expert: ExpertSettings | None, memory: MemorySettings | None) -> None:
    """Raises ValueError for an expert on old classes of which there is no image."""
    if expert is not None and expert.similar and memory is None:
        raise ValueError(
            f"expert.similar = {expert.similar} old classes are learned from exemplars, and there "
            "is no memory: say which, such as memory: {per_class: 20}, or expert: {similar: 0}"
        )


class Host(MethodSettings):
    """Of methods that mnemonics (Liu et al. 2020) can be a part of, beside its exemplars."""

    fine_tune: FineTuning | None = None
    """How the model is trained on, after each step from step 1 on, on exemplars of all identities
    alone; none: it is not. Mnemonics' authors do, and LUCIR's on ImageNet."""
    weight_transfer: Transfer = "trained"
    """What is trained of convolutions from step 1 on: all weights; or, while these stay as step 0
    left them, factors and shifts of `channels` or of `kernels`."""

    def network(self, usual: EmbedderSettings, step: int) -> EmbedderSettings:
        if not step or self.weight_transfer == "trained":
            return usual
        return usual.model_copy(update={"convolutions": self.weight_transfer})


class Remembering(Host):
    """Of methods that may keep a memory."""

    over: Literal["new", "all"] = "new"
    """The classifier rows that new images are told apart by: those of the step's identities, or of
    all so far. Class-incremental learning asks for all."""
    memory: MemorySettings | None = None
    """Exemplars of old identities, trained on with the new images; `over` must then be all."""

    expert: ExpertSettings | None = None
    """A temporary expert on new classes and the old ones most like them, whose distillation is
    added to the method's losses (discriminative distillation); none: there is none."""
    predict: Literal["largest-logit", "nearest-mean", "largest-of-heads"] = "largest-logit"
    """Which class the model decides for: the one with the largest logit, the one whose exemplars'
    mean embedding is nearest, or, where images are told apart by new rows alone, the one with the
    largest probability within its step's classes."""

    @model_validator(mode="after")
    def _heads_are_apart(self) -> "Remembering":
        if self.over == "all" and self.predict == LargestOfHeads.name:
            raise ValueError(
                "predict=largest-of-heads is for classes that are told apart within their step: "
                "set over=new, or predict=largest-logit"
            )
        return self

    @model_validator(mode="after")
    def _expert_has_exemplars(self) -> "Remembering":
        check_expert(self.expert, self.memory)
        return self

    def rule(self) -> Rule:
        """The decision rule."""
        rules = (LargestLogit(), NearestMean(), LargestOfHeads())
        return next(rule for rule in rules if rule.name == self.predict)

    def distilled(self) -> tuple[DistilExpert, ...]:
        """The Term that `expert` adds."""
        return distilled(self.expert, self.over)

    def images(self) -> tuple[ImageSource, ...]:
        """What a step trains on."""
        return (NewImages(),) if self.memory is None else (NewImages(), self.memory.source())
