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
from trainer.methods.distillation import FlexibleDistillation, LearningWithoutForgetting
from trainer.methods.lfl import LessForgetting
from trainer.methods.plain import Baseline, Finetune, Joint

Method = Annotated[
    Baseline
    | Finetune
    | Joint
    | LessForgetting
    | LearningWithoutForgetting
    | FlexibleDistillation
    | BackwardCompatible
    | SynthesisedClassifier
    | DistilledInfluence
    | PseudoLabels
    | MatchOldEmbeddings,
    Field(discriminator="kind"),
]


METHODS = {
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
}
