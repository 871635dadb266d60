"""Backward-compatible training, and what its paper compares it with.

The old model is the previous learning step's, or that of step 0. Every recipe starts from scratch,
on the images of all steps so far, as the paper does; its `independent` model and paragon are
`joint`.
"""

from typing import Literal

from pydantic import Field

from trainer.methods.images import AllImages
from trainer.methods.influence import Influence
from trainer.methods.recipe import FROM_SCRATCH, Anchor, MethodSettings, Recipe, Retrained, Start
from trainer.methods.terms import Classify, MatchEmbeddings


class BackwardCompatible(Retrained):
    """BCT: the old classifier's loss on the identities it knows (Eq. 8)."""

    kind: Literal["bct"] = "bct"
    weight: float = Field(default=1.0, ge=0)
    """lambda, weight of the influence loss."""
    anchor: Anchor = "previous"
    """Whose classifier: the model's of the step before, or that of step 0."""

    def recipe(self) -> Recipe:
        terms = (Classify(), Influence(self.weight, "skip"))
        return Recipe(start=FROM_SCRATCH, images=(AllImages(),), terms=terms, anchor=self.anchor)


class SynthesisedClassifier(Retrained):
    """BCT-sys: new identities get rows in the old classifier, the means of old embeddings."""

    kind: Literal["bct-sys"] = "bct-sys"
    weight: float = Field(default=1.0, ge=0)
    """lambda, weight of the influence loss."""
    anchor: Anchor = "previous"
    """Whose classifier: the model's of the step before, or that of step 0."""

    def recipe(self) -> Recipe:
        terms = (Classify(), Influence(self.weight, "synthesise"))
        return Recipe(start=FROM_SCRATCH, images=(AllImages(),), terms=terms, anchor=self.anchor)


class DistilledInfluence(Retrained):
    """BCT-kd: on images of new identities the old classifier's answers are distilled."""

    kind: Literal["bct-kd"] = "bct-kd"
    weight: float = Field(default=1.0, ge=0)
    """lambda, weight of the influence loss."""
    temperature: float = Field(default=1.0, gt=0)
    """What the distilled logits are divided by, the old classifier's scale being in them."""

    def recipe(self) -> Recipe:
        terms = (Classify(), Influence(self.weight, "distil", temperature=self.temperature))
        return Recipe(start=FROM_SCRATCH, images=(AllImages(),), terms=terms)


class PseudoLabels(MethodSettings):
    """bct-lwf: only new images, and the old classifier's answers to them (Table 1)."""

    kind: Literal["bct-lwf"] = "bct-lwf"
    weight: float = Field(default=1.0, ge=0)
    """lambda, weight of the distillation."""
    temperature: float = Field(default=1.0, gt=0)
    """What the distilled logits are divided by, the old classifier's scale being in them."""

    def recipe(self) -> Recipe:
        distil = Influence(
            self.weight, "distil", classify_known=False, temperature=self.temperature
        )
        return Recipe(start=Start(embedder="scratch"), terms=(Classify(), distil))


class MatchOldEmbeddings(Retrained):
    """l2: the Euclidean distance to old embeddings of the images the old model knows (Eq. 3)."""

    kind: Literal["l2"] = "l2"
    weight: float = Field(default=1.0, ge=0)
    """lambda, weight of the distance."""

    def recipe(self) -> Recipe:
        match = MatchEmbeddings(self.weight, known_only=True)
        return Recipe(start=FROM_SCRATCH, images=(AllImages(),), terms=(Classify(), match))
