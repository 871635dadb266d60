"""The methods without a penalty: baseline, finetune and joint training (CRL paper, Sec. 5)."""

from typing import Literal

from trainer.methods.images import AllImages
from trainer.methods.memory import Remembering
from trainer.methods.recipe import FROM_SCRATCH, MethodSettings, Recipe, Retrained, Start
from trainer.methods.terms import Classify


class Baseline(MethodSettings):
    """Train from scratch on each step's images alone."""

    kind: Literal["baseline"] = "baseline"

    def recipe(self) -> Recipe:
        return Recipe(start=Start(embedder="scratch"), terms=(Classify(),))


class Finetune(Remembering):
    """Go on from the previous model on the new images, with nothing to hold it back, but for
    exemplars in `memory`."""

    kind: Literal["finetune"] = "finetune"

    def recipe(self) -> Recipe:
        return Recipe(
            images=self.images(),
            terms=(Classify(over=self.over), *self.distilled()),
            predict=self.rule(),
            fine_tune=self.fine_tune,
        )


class Joint(Retrained):
    """Upper bound: train from scratch on the images of every step so far, for as many epochs."""

    kind: Literal["joint"] = "joint"

    def recipe(self) -> Recipe:
        return Recipe(start=FROM_SCRATCH, images=(AllImages(),), terms=(Classify(),))
