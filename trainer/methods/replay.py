"""Generative feature replay (Liu et al. 2020, GFR): features of old classes are drawn, not stored.

Old classes' rows of one growing head are trained by features that a generator draws, new ones by
images. The extractor is kept by feature distillation. Equations are the paper's.

The authors' released code weighs its losses by f = 50 / m + t - 1, where 50 classes come first and
m in each step t after. That is C_old / C_new: distillation times f, and cross-entropy the average
(CE_new + f CE_replay) / (f + 1). The paper has all weights 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from data_shards.settings import InputError
from trainer.checkpoint import Folder
from trainer.entrance import EMBEDDING, IMAGE, Place
from trainer.heads.collectives import Ranks
from trainer.methods.entering import Entering
from trainer.methods.forward import Forward, Over
from trainer.methods.importance import (
    Consolidate,
    ElasticWeightConsolidation,
    MemoryAwareSynapses,
)
from trainer.methods.recipe import BatchNorm, MethodSettings, Recipe, Start, Term
from trainer.methods.spelling import added, unspelled
from trainer.methods.terms import Classify
from trainer.methods.wants import Answers, AnswersWithin, Want
from trainer.replay.gaussian import Covariance, Gaussians
from trainer.replay.source import FeatureSource, GeneratorKind, replayed
from trainer.replay.wgan_folder import ConvWgans, Wgans
from trainer.replay.wgan_settings import ConvWganSettings, WganSettings

Drift = Literal["ignored", "compensated"]


@dataclass(frozen=True)
class Generator(Want):
    """What draws features of all identities of the steps before."""

    how: GeneratorKind
    drift: Drift = added("ignored")
    place: str = added(EMBEDDING)
    """What is drawn, and where it enters: see `trainer.entrance.Place`."""

    def load(self, path: Path, ranks: Ranks, device: torch.device) -> FeatureSource:
        """Raises DamagedError, and InputError for a generator of another kind."""
        return self.how.read(Folder.at(path), device)

    def imagined(
        self, parameters: Mapping[str, torch.Tensor], rows: int, shape: tuple[int, ...]
    ) -> FeatureSource:
        return self.how.imagined(rows, shape)

    def beside(self, rows: int, shape: tuple[int, ...]) -> int:
        return self.how.beside(rows, shape)


@dataclass(frozen=True)
class Replay:
    """Cross-entropy of drawn features over all rows (GFR, Alg. 1, step 3): their mean.

    Counted once an update, whatever the batch's parts and the number of ranks. Nothing of it
    reaches the embedder.
    """

    weight: float
    how: GeneratorKind
    count: int | None = None
    """Features in an update; none: as many as the global batch has images."""
    drift: Drift = unspelled("ignored", repr=False)  # the phase that makes the generator names it
    """Whether every step moves the means of old identities as it moved its own images' embeddings;
    see `trainer.replay.drift`."""
    name: str = unspelled("replay")
    over: ClassVar[Over | None] = "all"

    @property
    def wants(self) -> tuple[Want, ...]:
        return (Generator(self.how, self.drift),)

    def at(self, old_rows: int) -> "Replay | None":
        return self if old_rows else None

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        source: FeatureSource = forward.loaded[Generator]
        old, embeddings = forward.rows["old"], forward.embeddings
        if source.rows != old.last:
            raise InputError(
                f"the generator draws features of {source.rows} identities, and {old.last} were "
                "learned before: run the steps before with the same method"
            )
        count = self.count or len(forward.every)
        given = count, forward.seed, forward.iteration, embeddings.device
        features, classes = replayed(source, *given)
        if features.shape[1] != embeddings.shape[1]:
            raise InputError(
                f"features of old identities have {features.shape[1]} numbers, and embeddings are "
                f"{embeddings.shape[1]} long now: replay needs the same embedder.dimension in all "
                "steps"
            )
        losses = forward.classifier.losses(
            features,
            classes,
            forward.rows["all"],
            forward.iteration,
            observe=False,  # the margin's statistics are those of images
        )
        return forward.once(losses.mean())


@dataclass(frozen=True)
class ReplayInputs:
    """Cross-entropy over all rows of what the network makes of drawn inputs: their mean.

    They enter before the embedding, so they train all that lies behind that place.
    """

    weight: float
    how: GeneratorKind
    place: str
    """Where they enter, see `trainer.entrance.Place`."""
    count: int | None = None
    """Inputs in an update; none: as many as the global batch has images."""
    name: str = unspelled("replay")
    over: ClassVar[Over | None] = "all"

    @property
    def wants(self) -> tuple[Want, ...]:
        return (Generator(self.how, place=self.place),)

    @property
    def enters(self) -> Entering:
        """See `Recipe.enters`."""
        return Entering(Generator, self.place, self.count)

    def at(self, old_rows: int) -> "ReplayInputs | None":
        return self if old_rows else None

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        drawn = forward.drawn
        assert drawn is not None
        losses = forward.classifier.losses(
            drawn.embeddings,
            drawn.classes,
            forward.rows["all"],
            forward.iteration,
            part=drawn.part,
            observe=False,  # the margin's statistics are those of images
        )
        return losses.sum(), len(drawn.every)


@dataclass(frozen=True)
class DistillFeatures:
    """The distance, not squared, between the previous model's embedding of an image and this one's
    (GFR, Eq. 4)."""

    weight: float
    name: str = unspelled("distillfeatures")
    over: ClassVar[Over | None] = None
    wants: ClassVar[tuple[Want, ...]] = (Answers(embeddings=True),)

    def at(self, old_rows: int) -> "DistillFeatures":
        return self

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        old = forward.teacher.embeddings
        assert old is not None
        # its gradient is 0 at 0, where a root of squares would have none
        apart = torch.linalg.vector_norm(forward.embeddings - old, dim=1)
        return apart.sum(), len(forward.every)


@dataclass(frozen=True)
class DistillWithin:
    """The same of what both models make of an image at a place before the embedding."""

    weight: float
    place: str
    """See `trainer.entrance.Place`."""
    name: str = unspelled("distillfeatures")
    over: ClassVar[Over | None] = None

    @property
    def wants(self) -> tuple[Want, ...]:
        return (AnswersWithin(self.place),)

    def at(self, old_rows: int) -> "DistillWithin":
        return self

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int]:
        within = forward.within
        assert within is not None
        apart = torch.linalg.vector_norm((within.now - within.before).flatten(1), dim=1)
        return within.gathered(apart).sum(), len(forward.every)


@dataclass(frozen=True)
class Grown:
    """A Term whose weight follows how much there is to keep, as in the released code."""

    term: Term
    by: Literal["f", "1 / (f + 1)", "f / (f + 1)"]
    """What its weight is multiplied by, where f = C_old / C_new."""
    weight: float = 1.0
    """The product, once both numbers are known."""

    @property
    def name(self) -> str:
        return self.term.name

    @property
    def over(self) -> Over | None:
        return self.term.over

    @property
    def wants(self) -> tuple[Want, ...]:
        return self.term.wants

    @property
    def enters(self) -> Entering | None:
        """See `Recipe.enters`."""
        entering: Entering | None = getattr(self.term, "enters", None)
        return entering

    def at(self, old_rows: int) -> Term | None:
        """At step 0 there is nothing to keep: the Term itself."""
        own = self.term.at(old_rows)
        return replace(self, term=own) if own and old_rows else own

    def among(self, old_rows: int, new_rows: int) -> "Grown":
        """See `Recipe.at`."""
        f = old_rows / new_rows
        share = {"f": f, "1 / (f + 1)": 1 / (f + 1), "f / (f + 1)": f / (f + 1)}[self.by]
        return replace(self, weight=self.term.weight * share)

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int | torch.Tensor]:
        return self.term(forward)


class Replaying(MethodSettings):
    """Of methods that replay features."""

    generator: Literal["gaussian", "wgan"] = "gaussian"
    """What draws features. gaussian: a normal distribution of each identity's embeddings; wgan: a
    conditional WGAN for all of them, see `wgan`."""
    covariance: Covariance = "full"
    """Of gaussian. full: each identity has its own; shared: all have the one within identities;
    diagonal: each has its own variances alone."""
    wgan: WganSettings = WganSettings()
    """Of generator=wgan."""
    drift: Drift = "ignored"
    """Of gaussian. ignored: the mean of an old identity's embeddings stays as its own step's model
    had it; compensated: every later step moves it as that step moved the embeddings of its own
    images, by an affine map fitted to these."""
    features: int | None = Field(default=None, ge=1)
    """Features drawn in an update; none: as many as the batch has images."""

    @model_validator(mode="after")
    def _moves_means(self) -> Self:
        if self.generator == "wgan" and self.drift == "compensated":
            raise ValueError(
                "drift=compensated moves stored means, and generator=wgan has none: choose "
                "generator=gaussian, or leave drift out"
            )
        return self

    def replayed(self, weight: float) -> Term:
        """The cross-entropy of the features that it draws."""
        how: GeneratorKind = Gaussians(self.covariance)
        if self.generator == "wgan":
            how = Wgans(self.wgan)
        return Replay(weight, how, self.features, self.drift)


class GenerativeFeatureReplay(Replaying):
    """GFR: features of old classes are drawn beside new images; no image is stored.

    Authors' settings: Adam at 1e-3, CIFAR-100 201 epochs a step with ResNet-18, ImageNet 101.
    """

    kind: Literal["gfr"] = "gfr"
    at: Place = EMBEDDING
    """Which features are drawn, and kept by keep=features: embeddings, or what a block of the
    network makes of an image, such as "block 3" (the paper's Table 2, whose block 4 is the
    embedding)."""
    block_wgan: ConvWganSettings = ConvWganSettings()
    """Of generator=wgan where `at` is a block."""
    replay: float = Field(default=1.0, ge=0)
    """Weight of the features' cross-entropy."""
    keep: Literal["features", "ewc", "mas"] = "features"
    """What holds the extractor. features: the distance of embeddings from the previous model's;
    ewc, mas: these methods' penalties in its place (the paper's Table 3)."""
    weight: float | None = Field(default=None, ge=0)
    """Of what holds the extractor. None: 1 for features; ewc and mas have their own."""
    weighting: Literal["paper", "released"] = "paper"
    """paper: as the weights say. released: with f = old classes / new classes, features are kept by
    f times `weight`, and the two cross-entropies count 1 / (f + 1) and f / (f + 1)."""
    batch_norm: BatchNorm = "trained"
    """Of batch normalisation, from the second step on; held: by the running statistics of the
    first step's model, which stay, as in the released code."""

    @model_validator(mode="after")
    def _weighs_features(self) -> "GenerativeFeatureReplay":
        if self.weighting == "released" and self.keep != "features":
            raise ValueError("weighting=released is known of keep=features alone: set that")
        return self

    @model_validator(mode="after")
    def _draws_features(self) -> "GenerativeFeatureReplay":
        if self.at == IMAGE:
            raise ValueError("at=image: images are drawn by kind=mergan, features at a block")
        if self.at != EMBEDDING and self.drift == "compensated":
            raise ValueError(
                f"drift=compensated is known of embeddings alone, and at={self.at}: leave drift out"
            )
        full = self.generator == "gaussian" and self.covariance == "full"
        if self.at != EMBEDDING and full:
            raise ValueError(
                f"at={self.at} draws thousands of numbers, and covariance=full has half of their "
                "square for each class: set covariance=diagonal or shared, or generator=wgan"
            )
        return self

    def replayed(self, weight: float) -> Term:
        if self.at == EMBEDDING:
            return super().replayed(weight)
        how: GeneratorKind = Gaussians(self.covariance)
        if self.generator == "wgan":
            how = ConvWgans(self.block_wgan)
        return ReplayInputs(weight, how, self.at, self.features)

    def recipe(self) -> Recipe:
        classify: Term = Classify(over="all")
        replay = self.replayed(self.replay)
        kept = self._kept()
        if self.weighting == "released":
            classify, replay = Grown(classify, "1 / (f + 1)"), Grown(replay, "f / (f + 1)")
            kept = Grown(kept, "f")
        start = Start(batch_norm=self.batch_norm)
        return Recipe(start=start, terms=(classify, replay, kept))

    def _kept(self) -> Term:
        """What holds the extractor."""
        if self.keep == "features":
            weight = 1.0 if self.weight is None else self.weight
            if self.at != EMBEDDING:
                return DistillWithin(weight, self.at)
            return DistillFeatures(weight)
        given = {} if self.weight is None else {"weight": self.weight}
        penalised = ElasticWeightConsolidation if self.keep == "ewc" else MemoryAwareSynapses
        (penalty,) = (t for t in penalised(**given).recipe().terms if isinstance(t, Consolidate))
        return penalty


class FeatureReplay(Replaying):
    """Replay by itself, with nothing to hold the extractor: for combinations such as with FKD."""

    kind: Literal["replay"] = "replay"
    covariance: Covariance = "shared"
    """Of gaussian. shared: one of all identities, and a mean of each, so that there can be tens of
    thousands; full: each identity has its own; diagonal: each has its own variances alone."""
    weight: float = Field(default=1.0, ge=0)
    """Of the features' cross-entropy over all rows."""
    over: Literal["new", "all"] = "new"
    """The classifier rows that new images are told apart by: those of the step's identities, or of
    all so far. all wants a cosine classifier, such as the margin norm_softmax: with a linear one it
    harmed embeddings of identities that are not learned (docs/facts.md), with that one and
    drift=compensated it did not (docs/results/feature_replay.md)."""
    rows: Literal["trained", "frozen"] = "trained"
    """Old identities' rows are trained, or stay as they are."""

    def recipe(self) -> Recipe:
        start = Start(old_rows="held" if self.rows == "frozen" else "previous")
        return Recipe(start=start, terms=(Classify(over=self.over), self.replayed(self.weight)))
