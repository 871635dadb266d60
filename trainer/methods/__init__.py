"""The methods: one file a paper, each giving a `Recipe`. `METHODS` lists them, and nothing else."""

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from trainer.methods.bct import (
    BackwardCompatible,
    DistilledInfluence,
    MatchOldEmbeddings,
    PseudoLabels,
    SynthesisedClassifier,
)
from trainer.methods.bic import BiasCorrection
from trainer.methods.combination import Combination
from trainer.methods.distillation import FlexibleDistillation, LearningWithoutForgetting
from trainer.methods.icarl import ICaRL
from trainer.methods.importance import ElasticWeightConsolidation, MemoryAwareSynapses
from trainer.methods.lfl import LessForgetting
from trainer.methods.lucir import LUCIR
from trainer.methods.mergan import MemoryReplayGAN
from trainer.methods.plain import Baseline, Finetune, Joint
from trainer.methods.recipe import MethodSettings
from trainer.methods.replay import FeatureReplay, GenerativeFeatureReplay

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
    "icarl": ICaRL,
    "lucir": LUCIR,
    "bic": BiasCorrection,
    "ewc": ElasticWeightConsolidation,
    "mas": MemoryAwareSynapses,
    "gfr": GenerativeFeatureReplay,
    "replay": FeatureReplay,
    "mergan": MemoryReplayGAN,
    "combination": Combination,
}
"""By the `kind` that configurations choose them with."""


def _one_of(*methods: type[MethodSettings]) -> Any:
    """The type of fields that hold the settings of one of `methods`."""
    return Annotated[Union[methods], Field(discriminator="kind")]  # noqa: UP007


if TYPE_CHECKING:
    Method = MethodSettings
else:
    Method = _one_of(*METHODS.values())

# combinations do not nest
_SINGLE = [method for method in METHODS.values() if method is not Combination]
Combination.model_rebuild(_types_namespace={"Single": _one_of(*_SINGLE)})
