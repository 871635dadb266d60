"""The shape of what `perennial analyse` writes into a run folder."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from monitoring.run_folder import METHOD
from monitoring.schemas import MOST_STEPS, MOST_TASKS, Count, Jpeg, Name, Portion, Real, Step

_MOST_CHAINS, _MOST_LAYERS, _MOST_POINTS = 10_000, 100, 100_000
MOST_CLASSES = 20
"""Classes in one picture of features: as many colours can be told apart."""
MOST_IMAGES = 64
"""Images whose maps of attention are in one file."""
MethodName = Annotated[str, Field(pattern=f"^{METHOD.pattern}$")]


@with_config({"strict": True})
class LayerSimilarity(TypedDict):
    """How alike two models see the same images in a layer."""

    mean: Portion
    """The mean canonical correlation."""
    floor: Portion
    """What independent features would be found to have."""
    directions: Annotated[list[Count], Field(min_length=2, max_length=2)]


@with_config({"strict": True})
class SimilarityCell(TypedDict):
    """The model that learned the classes of step `task`, and that of a later `step`, compared."""

    task: Step
    step: Step
    images: Count
    layers: Annotated[dict[Name, LayerSimilarity], Field(max_length=_MOST_LAYERS)]


@with_config({"strict": True})
class ChainSimilarity(TypedDict):
    """The models of one chain compared."""

    method: MethodName
    seed: Count
    of: Annotated[str, Field(max_length=200)]
    """A hash of all that it follows from."""
    cells: Annotated[list[SimilarityCell], Field(max_length=10 * MOST_STEPS)]


@with_config({"strict": True})
class Similarities(TypedDict):
    """The models of a run compared."""

    version: Literal[1]
    variance: Portion
    chains: Annotated[list[ChainSimilarity], Field(max_length=_MOST_CHAINS)]


@with_config({"strict": True})
class FeatureGroup(TypedDict):
    """The features of one class and origin, in the plane."""

    label: Name
    """The class."""
    origin: Literal["test", "training", "exemplar", "start", "generated"]
    """start: the images that exemplars began as, in the order of the class' exemplars."""
    points: Annotated[
        list[Annotated[list[Real], Field(min_length=2, max_length=2)]],
        Field(max_length=_MOST_POINTS),
    ]


@with_config({"strict": True})
class Features(TypedDict):
    """Features of some classes by one model, laid out in the plane."""

    version: Literal[1]
    method: MethodName
    seed: Count
    step: Step
    model: Annotated[str, Field(max_length=200)]
    """Its fingerprint."""
    groups: Annotated[list[FeatureGroup], Field(max_length=5 * MOST_CLASSES)]


@with_config({"strict": True})
class FeaturesOfStep(TypedDict):
    """Features of some identities by the model of one learning step."""

    step: Step
    model: Annotated[str, Field(max_length=200)]
    groups: Annotated[list[FeatureGroup], Field(max_length=MOST_CLASSES)]


@with_config({"strict": True})
class FeaturesOverSteps(TypedDict):
    """Features of the same images by all models of a chain, each laid out in the plane."""

    version: Literal[1]
    method: MethodName
    seed: Count
    steps: Annotated[list[FeaturesOfStep], Field(max_length=MOST_TASKS)]


@with_config({"strict": True})
class StepErrors(TypedDict):
    """The errors of a step's model on test images of all classes so far, by what they are."""

    step: Step
    images: Count
    wrong: Count
    confusion: Count
    forgetting: Count
    other: Count


@with_config({"strict": True})
class ChainErrors(TypedDict):
    """The errors of one chain's models."""

    method: MethodName
    seed: Count
    steps: Annotated[list[StepErrors], Field(max_length=MOST_STEPS)]


@with_config({"strict": True})
class MetaClass(TypedDict):
    """Classes that are alike."""

    name: Name
    classes: Annotated[list[Name], Field(max_length=_MOST_POINTS)]


@with_config({"strict": True})
class MetaClasses(TypedDict):
    """The meta-classes by which errors are told apart."""

    source: Name
    groups: Annotated[list[MetaClass], Field(max_length=_MOST_POINTS)]


@with_config({"strict": True})
class Errors(TypedDict):
    """The errors of a run's models."""

    version: Literal[1]
    meta: MetaClasses
    chains: Annotated[list[ChainErrors], Field(max_length=_MOST_CHAINS)]


@with_config({"strict": True})
class AttentionMap(TypedDict):
    """An image under the map of a step's model, and what it is taken for."""

    step: Step
    said: Name
    right: bool
    jpeg: Jpeg


@with_config({"strict": True})
class AttentionImage(TypedDict):
    """A test image with the maps of the steps that know its class."""

    image: Name
    """Its key."""
    label: Name
    jpeg: Jpeg
    maps: Annotated[list[AttentionMap], Field(max_length=MOST_TASKS)]


@with_config({"strict": True})
class Attention(TypedDict):
    """Where the models of one chain look."""

    version: Literal[1]
    method: MethodName
    seed: Count
    of: Literal["true", "predicted"]
    """Whose logit the maps are for."""
    steps: Annotated[list[Step], Field(max_length=MOST_TASKS)]
    images: Annotated[list[AttentionImage], Field(max_length=MOST_IMAGES)]


SIMILARITIES = TypeAdapter(Similarities)
FEATURES = TypeAdapter(Features)
FEATURES_OVER_STEPS = TypeAdapter(FeaturesOverSteps)
ERRORS = TypeAdapter(Errors)
ATTENTION = TypeAdapter(Attention)
