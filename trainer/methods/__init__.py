"""The methods: one file a paper, each giving a `Recipe`."""

from typing import Annotated

from pydantic import Field

from trainer.methods.bct import (
    BackwardCompatible,
    DistilledInfluence,
    MatchOldEmbeddings,
    PseudoLabels,
    SynthesisedClassifier,
)
from trainer.methods.combination import Combination, Single
from trainer.methods.distillation import FlexibleDistillation, LearningWithoutForgetting
from trainer.methods.lfl import LessForgetting
from trainer.methods.plain import Baseline, Finetune, Joint
from trainer.methods.recipe import MethodSettings

Method = Annotated[Single | Combination, Field(discriminator="kind")]
METHODS: dict[str, type[MethodSettings]] = {
    "baseline": Baseline,
    "finetune": Finetune,
    "joint": Joint,
    "lfl": LessForgetting,
    "lwf": LearningWithoutForgetting,
    "fkd": FlexibleDistillation,
    "bct": BackwardCompatible,
    "bct-sys": SynthesisedClassifier,
    "bct-kd": DistilledInfluence,
    "bct-lwf": PseudoLabels,
    "l2": MatchOldEmbeddings,
    "combination": Combination,
}
