"""What a continual-learning method is: data, not a subclass."""

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch

from data_shards.files import fingerprint
from data_shards.settings import Settings
from trainer.backbones import EmbedderSettings
from trainer.heads.cross_entropy import Update
from trainer.heads.margin_loss import ClassifierSettings, MarginLoss, Part
from trainer.heads.rows import ShardedRows, own_ids
from trainer.methods.spelling import renamed, spelled

Anchor = Literal["previous", "first"]


@dataclass(frozen=True)
class Teacher:
    """What the previous model says of a global batch of B images, equal on every rank."""

    embeddings: torch.Tensor | None = None
    """[B, d] the previous model's embeddings."""
    classes: torch.Tensor | None = None
    """[B, K] int64, each image's K old identities with the highest activations."""
    activations: torch.Tensor | None = None
    """[B, K] float32, the previous model's activations on them."""
    rows: ShardedRows | None = None
    """The previous model's own rows as its logits see them, frozen."""
    num_known: int = 0
    """How many identities it was trained on; those beyond are new to it."""


@dataclass(frozen=True)
class OldClassifier:
    """The classifier of a finished model, frozen."""

    rows: ShardedRows
    """As its logits see them; for Terms that ask for class means, followed by one row for each
    identity trained on now that it does not know."""
    classifier: MarginLoss
    """Its margin and running statistics."""
    num_known: int
    """How many of the rows it was trained with."""

    def trained(self) -> "OldClassifier":
        """It without the rows behind those that it was trained with, in the same memory."""
        ranks = self.rows.ranks
        own = self.rows.weight.detach()[: len(own_ids(0, self.num_known, ranks))]
        rows = ShardedRows(0, self.num_known, own, ranks).requires_grad_(False)
        return OldClassifier(rows, self.classifier, self.num_known)

    def teacher(self, **said: torch.Tensor | None) -> Teacher:
        """Its rows, with what its model `said` of a batch."""
        return Teacher(rows=self.rows, num_known=self.num_known, **said)


@dataclass(frozen=True)
class Forward:
    """Everything a Term may look at in one iteration."""

    embeddings: torch.Tensor
    """[B, d] the embeddings of the global batch, or of a part of it, gathered over the ranks, with
    autograd."""
    labels: torch.Tensor
    """[B] int64 classifier rows."""
    current: ShardedRows
    """The rows of this step's identities (of all identities, when a recipe trains on all data)."""
    previous: ShardedRows | None
    """The trained copy of the old identities' rows."""
    teacher: Teacher
    classifier: MarginLoss
    iteration: int = 0
    update: Update | None = None
    """Update the current rows in the backward pass; none: leave their gradient."""
    anchor: OldClassifier | None = None
    """Of the model to stay compatible with, for Terms that ask for a classifier."""
    part: Part | None = None
    """Where this is a part of the global batch only."""

    @property
    def every(self) -> torch.Tensor:
        """The labels of the whole global batch, of which `labels` may be a part."""
        return self.labels if self.part is None else self.part.labels


@dataclass(frozen=True)
class Needs:
    """What a Term asks of old models; nothing, for a Term that works at step 0 too."""

    embeddings: bool = False
    neighbours: int | None = None
    """K."""
    trained_rows: bool = False
    """The old identities' rows are trained along."""
    classifier: bool = False
    """The classifier of the recipe's anchor with its rows, frozen."""
    class_means: bool = renamed("prototypes", default=False)
    """Rows for the identities that the anchor does not know: the means of its embeddings of their
    images."""

    @property
    def answers(self) -> bool:
        """Whether the previous model must be run on each training image."""
        return self.embeddings or self.neighbours is not None

    @property
    def any(self) -> bool:
        """Whether there must be a previous model at all."""
        return self.answers or self.trained_rows or self.classifier or self.class_means


class Term(Protocol):
    """One weighted loss."""

    @property
    def weight(self) -> float:
        """What the loss is multiplied by."""

    @property
    def needs(self) -> Needs:
        """What it asks of the previous model."""

    def at(self, old_rows: int) -> "Term":
        """The Term to use when there are `old_rows` old identities."""

    def __call__(self, forward: Forward) -> tuple[torch.Tensor, int | torch.Tensor]:
        """The loss summed over the samples at hand, and how many of the *whole* global batch's
        samples have one: so that what the parts of a batch give can be added up."""


@dataclass(frozen=True)
class Recipe:
    """How one learning step is trained."""

    start: Literal["scratch", "previous"] = "previous"
    """Where the embedder and rows start."""
    data: Literal["current", "all"] = "current"
    """Train on this step's images, or on those of every step so far (upper bound)."""
    terms: tuple[Term, ...] = field(default=())
    anchor: Anchor = "previous"
    """The model to stay compatible with: that of the step before, or that of step 0."""

    def __post_init__(self) -> None:
        sizes = {k for k in (term.needs.neighbours for term in self.terms) if k is not None}
        if len(sizes) > 1:
            raise ValueError(f"one recipe cannot select neighbourhoods of several sizes: {sizes}")

    @property
    def needs(self) -> Needs:
        """What all Terms together ask of the previous model."""
        every = [term.needs for term in self.terms]
        return Needs(
            embeddings=any(n.embeddings for n in every),
            neighbours=next((n.neighbours for n in every if n.neighbours is not None), None),
            trained_rows=any(n.trained_rows for n in every),
            classifier=any(n.classifier for n in every),
            class_means=any(n.class_means for n in every),
        )

    def at(self, step: int, old_rows: int) -> "Recipe":
        """This recipe as it applies at learning step `step`, with `old_rows` = C_old.

        Step 0 has no previous model: it starts from scratch, without the Terms that need one. A
        neighbourhood of K >= C_old is all old rows, and is computed as such.
        """
        if step == 0:
            return Recipe("scratch", "current", tuple(t for t in self.terms if not t.needs.any))
        return replace(self, terms=tuple(t.at(old_rows) for t in self.terms))

    def fingerprint(self) -> str:
        """Equal for recipes that train alike."""
        terms = [[type(term).__name__, spelled(term)] for term in self.terms]
        return fingerprint([self.start, self.data, self.anchor, terms])


class MethodSettings(Settings):
    """Base of every method's settings."""

    def recipe(self) -> Recipe:
        """The method as a recipe."""
        raise NotImplementedError

    def network(self, usual: EmbedderSettings, step: int) -> EmbedderSettings:
        """The network of learning step `step`, where the run's is `usual`."""
        return usual

    def loss(self, usual: ClassifierSettings, step: int) -> ClassifierSettings:
        """The classifier of learning step `step`, where the run's is `usual`."""
        return usual


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
