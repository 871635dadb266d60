"""What a continual-learning method is: data, not a subclass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.files import fingerprint
from data_shards.settings import Settings
from data_shards.splits.benchmark import Benchmark
from data_shards.splits.holding_out import held_each
from trainer.backbones import EmbedderSettings
from trainer.decisions import LargestLogit, NearestMean, Rule
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods.entering import Entering
from trainer.methods.fine_tuning import FineTuning
from trainer.methods.forward import Forward, Over
from trainer.methods.images import AllImages, Exemplars, ImageSource, NewImages
from trainer.methods.spelling import spelled, spelled_needs
from trainer.methods.wants import Answers, AnswersWithin, Want, merged
from trainer.optimizers import TrainingSettings

Anchor = Literal["previous", "first"]
BatchNorm = Literal["trained", "held"]
"""Whether batch normalisation takes a batch's own statistics, or the running ones of the previous
model, which then stay. Its scales and shifts are trained."""


class Term(Protocol):
    """One weighted loss."""

    @property
    def name(self) -> str:
        """What its mean is called in records and metrics. Two Terms of a recipe differ in it."""

    @property
    def weight(self) -> float:
        """What the loss is multiplied by."""

    @property
    def over(self) -> Over | None:
        """Whose rows it trains; none: it trains no rows.

        Which rows a step has follows from that, and whether they can be updated in the backward
        pass.
        """

    @property
    def wants(self) -> tuple[Want, ...]:
        """What it wants of earlier models; nothing, for a Term that works at step 0 too."""

    def at(self, old_rows: int) -> "Term | None":
        """The Term to use when there are `old_rows` old identities; none: it has nothing to do."""

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int | torch.Tensor]:
        """The loss summed over the samples at hand, and how many of the *whole* global batch's
        samples have one: so that what the parts of a batch give can be added up."""


@dataclass(frozen=True)
class Start:
    """What a learning step begins with. Raises ValueError for what does not go together."""

    embedder: Literal["scratch", "previous"] = "previous"
    """Random, or the previous model's, with the running statistics of its margin."""
    old_rows: Literal["scratch", "previous", "held"] = "previous"
    """Old identities' rows: random, or the previous model's; held: these, and they stay as they
    are, whatever Term is over them. A model keeps a row for every identity so far, so they are
    there even where nothing trains them."""
    new_rows: Literal["random", "imprinted"] = "random"
    """New identities' rows: random, or the directions of the means of the previous model's unit
    embeddings of their images, as long as old rows are on average (LUCIR, released code)."""

    batch_norm: BatchNorm = "trained"

    def __post_init__(self) -> None:
        if self.batch_norm == "held" and self.embedder == "scratch":
            raise ValueError(
                "batch normalisation is held at the previous model's statistics: start from it"
            )
        if self.new_rows == "imprinted" and "scratch" in (self.embedder, self.old_rows):
            raise ValueError(
                "rows are imprinted with the previous model's embeddings: start from it, with its "
                "rows, or leave them random"
            )

    def spelled(self, sees_all: bool) -> str:
        """In fingerprints. When recipes could not say where old rows start, those of a new
        embedder that saw every image started from scratch, all others from the previous model."""
        usual = "scratch" if self.embedder == "scratch" and sees_all else "previous"
        rows = "" if self.old_rows == usual else f", old rows {self.old_rows}"
        new = "" if self.new_rows == "random" else f", new rows {self.new_rows}"
        norm = "" if self.batch_norm == "trained" else f", batch norm {self.batch_norm}"
        return f"{self.embedder}{rows}{new}{norm}"


FROM_SCRATCH = Start(embedder="scratch", old_rows="scratch")
"""Nothing of the previous model."""

_RELEASED_IMAGES: dict[tuple[ImageSource, ...], str] = {
    (NewImages(),): "current",
    (AllImages(),): "all",
}

_W = TypeVar("_W", bound=Want)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one learning step is trained. Raises ValueError for Terms that do not go together."""

    start: Start = Start()
    images: tuple[ImageSource, ...] = (NewImages(),)
    """What it trains on, all of them together."""
    terms: tuple[Term, ...] = ()
    anchor: Anchor = "previous"
    """The model to stay compatible with: that of the step before, or that of step 0."""
    predict: Rule = LargestLogit()
    """How the step's model decides which class an image is of. No training depends on it."""
    hold_out: float = 0.0
    """Share of each old identity's exemplars, and as many images of each new one, that it does
    not train on: for a phase behind the training."""
    fine_tune: FineTuning | None = None
    """How the trained model is then trained on the memory that the step leaves; none: it is not.
    The main training does not depend on it."""

    def __post_init__(self) -> None:
        merged(want for term in self.terms for want in term.wants)
        owner: dict[str, Term] = {}
        for term in self.terms:
            if term.name == "loss":
                raise ValueError(f"{term} is called loss, as the sum of all is: name it otherwise")
            if term.name in owner:
                raise ValueError(
                    f"{owner[term.name]} and {term} are both called {term.name}, and one's metric "
                    "would overwrite the other's: give one of them another name"
                )
            owner[term.name] = term
        if self.memory is not None and any(term.over == "new" for term in self.terms):
            raise ValueError(
                "a memory of old identities is trained on over all rows: set over=all, or leave "
                "the memory out"
            )
        if self.hold_out and self.memory is None:
            raise ValueError("images can be held out of a memory only, and there is none")
        if self.fine_tune is not None and self.memory is None:
            raise ValueError(
                "a model is fine-tuned on exemplars, and there is no memory: say which, such as "
                "memory: {per_class: 20}, or leave fine_tune out"
            )
        if isinstance(self.predict, NearestMean) and self.memory is None:
            raise ValueError(
                "predict=nearest-mean compares with exemplars, and there is no memory: say which, "
                "such as memory: {per_class: 20}, or predict=largest-logit"
            )

    @property
    def enters(self) -> Entering | None:
        """What enters the network beside the images: what a Term says in an attribute ``enters``,
        which most have not got."""
        every = (getattr(term, "enters", None) for term in self.terms)
        return next((entering for entering in every if entering is not None), None)

    @property
    def wants(self) -> tuple[Want, ...]:
        """What all Terms together want of earlier models, one of each class."""
        return merged(want for term in self.terms for want in term.wants)

    def want(self, kind: type[_W]) -> _W | None:
        """The want of that class; None where no Term has it."""
        return next((want for want in self.wants if isinstance(want, kind)), None)

    def runs_previous(self, online: bool) -> bool:
        """Whether the previous model runs along with training, where the teacher is `online`."""
        asked = online and self.want(Answers) is not None
        return asked or self.want(AnswersWithin) is not None

    @property
    def sees_all(self) -> bool:
        """Whether it trains on all images of every identity so far."""
        return any(source.every_identity for source in self.images)

    def samples(self, benchmark: Benchmark, step: int) -> NDArray[np.int64]:
        """The dataset rows [n] that learning step `step` trains on."""
        return np.concatenate([source.samples(benchmark, step) for source in self.images])

    @property
    def memory(self) -> Exemplars | None:
        """The exemplars among its images."""
        return next((s for s in self.images if isinstance(s, Exemplars)), None)

    def count(self, images: Sequence[int], rows: Sequence[int], step: int) -> int:
        """How many `samples` there are, where learning step t brings images[t] new ones, and
        rows[t] identities are learned after it."""
        held = self.held_each(rows[step - 1]) * rows[step] if step else 0
        return sum(source.count(images, rows, step) for source in self.images) - held

    def held_each(self, old_rows: int) -> int:
        """How many images of each identity are held out at a step with `old_rows` = C_old."""
        if self.memory is None or not self.hold_out:
            return 0
        return held_each(self.hold_out, self.memory.share(old_rows))

    def at(self, step: int, old_rows: int, new_rows: int | None = None) -> "Recipe":
        """This recipe as it applies at learning step `step`, with `old_rows` = C_old.

        `new_rows` = C_new is for Terms that weigh by both and have a method ``among(old_rows,
        new_rows)`` for it, and for them alone.

        Step 0 has no previous model: it starts from scratch, without the Terms that want one or
        train old identities' rows. A neighbourhood of K >= C_old is all old rows, and is computed
        as such.
        """
        if step == 0:
            # the same for all methods, so that a run trains step 0 once a seed
            first = _those_at(self.terms, 0)
            terms = tuple(t for t in first if not t.wants and t.over != "old")
            return Recipe(start=Start(embedder="scratch"), terms=terms)
        terms = tuple(
            term.among(old_rows, new_rows)
            if new_rows is not None and hasattr(term, "among")
            else term
            for term in _those_at(self.terms, old_rows)
        )
        return replace(self, terms=terms)

    def fine_tuned(self) -> "Recipe":
        """How the model is trained on, on the memory alone: the images of its step are then the
        memory's, and it asks for no other."""
        return replace(
            self, images=(NewImages(),), predict=LargestLogit(), hold_out=0.0, fine_tune=None
        )

    def spelled_images(self) -> str | list[str]:
        """The images in fingerprints."""
        held = [f"held out {self.hold_out}"] if self.hold_out else []
        usual = _RELEASED_IMAGES.get(self.images)
        return usual or [*(spelled(source) for source in self.images), *held]

    def spelled_needs(self) -> str:
        """What is wanted of earlier models, in the fingerprint of the previous one's answers."""
        return spelled_needs(self.wants, any(term.over == "old" for term in self.terms))

    def fingerprint(self) -> str:
        """Equal for recipes that train alike."""
        terms = [[type(term).__name__, spelled(term)] for term in self.terms]
        start = self.start.spelled(self.sees_all)
        return fingerprint([start, self.spelled_images(), self.anchor, terms])


def _those_at(terms: tuple[Term, ...], old_rows: int) -> tuple[Term, ...]:
    return tuple(own for term in terms if (own := term.at(old_rows)) is not None)


class MethodSettings(Settings):
    """Base of every method's settings."""

    training: TrainingSettings | None = None
    """How long and how fast this method's learning steps are trained; keys left out are those of
    the run's. None: the run's."""

    def recipe(self) -> Recipe:
        """The method as a recipe."""
        raise NotImplementedError

    def network(self, usual: EmbedderSettings, step: int) -> EmbedderSettings:
        """The network of learning step `step`, where the run's is `usual`."""
        return usual

    def loss(self, usual: ClassifierSettings, step: int) -> ClassifierSettings:
        """The classifier of learning step `step`, where the run's is `usual`."""
        return usual

    def lessons(self, usual: TrainingSettings) -> TrainingSettings:
        """How each learning step is trained, where the run's settings are `usual`."""
        return self.training or usual


class Retrained(MethodSettings):
    """Of methods that train a new model on the images of all steps so far."""

    embedder: EmbedderSettings | None = None
    """The network from step 1 on; keys left out are those of the run's. None: the run's."""
    classifier: ClassifierSettings | None = None
    """The loss from step 1 on; keys left out are those of the run's. None: the run's."""

    def network(self, usual: EmbedderSettings, step: int) -> EmbedderSettings:
        return (self.embedder if step else None) or usual

    def loss(self, usual: ClassifierSettings, step: int) -> ClassifierSettings:
        return (self.classifier if step else None) or usual
