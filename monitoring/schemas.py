"""The shape of everything that a run writes into its folder as JSON: one type a kind of record.

What has another shape was not written by a run, or was damaged since. Keys that are not named here
are dropped, but for those of logs.
"""

import base64
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from monitoring.run_folder import LABEL, OUTPUT, PHASE
from untrusted.pictures import open_picture
from untrusted.text import printable

MOST_STEPS = 10_000
MOST_TASKS = 1000
"""Learning steps of a matrix over them: a page has a cell for each two."""
_PICTURE_BYTES, _PICTURE_PIXELS = 16 << 20, 1 << 26
_STRICT = ConfigDict(strict=True)
Phase = tuple[str, int, int, str]
"""Method, seed, step and label."""


def phase_of(name: Any) -> Phase | None:
    """Method, seed, step and label of a phase's name, METHOD/seed-S/step-T/LABEL."""
    found = PHASE.fullmatch(name) if isinstance(name, str) else None
    return (found[1], int(found[2]), int(found[3]), found[4]) if found else None


def _phase(name: str) -> str:
    if phase_of(name) is None:
        raise PydanticCustomError("phase", "it is no phase METHOD/seed-S/step-T/LABEL")
    return name


def _jpeg(text: str) -> str:
    """Base64 of a JPEG that a browser can show without harm: nothing else goes into a page."""
    try:
        if open_picture(base64.b64decode(text, validate=True), _PICTURE_PIXELS).format == "JPEG":
            return text
    except ValueError:
        pass
    raise PydanticCustomError("jpeg", "it is no JPEG")


def _cut(most: int, keep: str = "") -> AfterValidator:
    return AfterValidator(lambda text: printable(text[:most], keep))


Jpeg = Annotated[str, Field(max_length=_PICTURE_BYTES), AfterValidator(_jpeg)]
PhaseName = Annotated[str, Field(max_length=300), AfterValidator(_phase)]
Name = Annotated[str, Field(max_length=500), _cut(500)]
Words = Annotated[str, _cut(5000)]
Real = Annotated[float, Field(ge=-1e18, le=1e18, allow_inf_nan=False)]
"""A number that may be added, squared and drawn."""
Share = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Portion = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
"""Seconds since 1970."""
Count = Annotated[int, Field(ge=0, le=1 << 62)]
Step = Annotated[int, Field(ge=0, lt=MOST_STEPS)]
Shares = Annotated[list[Share], Field(max_length=100_000)]
Curve = Annotated[
    list[Annotated[list[Share], Field(min_length=2, max_length=2)]], Field(max_length=100_000)
]
Rates = Annotated[dict[Name, Share], Field(max_length=100)]


@with_config(_STRICT)
class LedgerLine(TypedDict):
    """A finished phase."""

    phase: PhaseName
    fingerprint: Annotated[str, Field(max_length=200)]
    output: Annotated[str, Field(pattern=f"^{OUTPUT.pattern}$")]
    kind: NotRequired[Annotated[str, Field(pattern=f"^{LABEL.pattern}$")]]
    where: NotRequired[Literal["actors", "ranks", "driver"]]
    started: Moment
    finished: Moment
    cpus: NotRequired[Real]
    gpus: NotRequired[Real]
    attempt: NotRequired[Count]
    commit: NotRequired[Annotated[str, Field(pattern=r"^([0-9a-f]{40,64}\+?|unknown)$")]]
    """Of the code that did it, with a + where files differed from it."""
    same_as: NotRequired[PhaseName]


@with_config(_STRICT)
class PlannedPhase(TypedDict):
    """A phase of a run, done or not."""

    phase: PhaseName
    fingerprint: Annotated[str, Field(max_length=200)]
    kind: Annotated[str, Field(pattern=f"^{LABEL.pattern}$")]
    outputs: Annotated[
        list[Annotated[str, Field(pattern=f"^{OUTPUT.pattern}$")]], Field(max_length=100)
    ]
    """Without which it is not finished, from the run folder."""
    inputs: Annotated[list[PhaseName], Field(max_length=MOST_STEPS)]
    only_prepares: bool


@with_config(_STRICT)
class MetricsLine(TypedDict):
    """What rank 0 says of some iterations. The loss may be infinite or NaN."""

    phase: PhaseName
    iteration: Count
    of: Annotated[int, Field(ge=1, le=1 << 62)]
    time: NotRequired[Moment]
    iterations: NotRequired[Annotated[int, Field(ge=1, le=1 << 62)]]
    seconds: NotRequired[Annotated[float, Field(ge=0, le=1e11)]]
    images_per_second: NotRequired[Real]
    data_wait_share: NotRequired[Share]
    skipped: NotRequired[Count]
    rewinds: NotRequired[Count]
    restarts: NotRequired[Count]
    loss: NotRequired[float]
    classify: NotRequired[float]


@with_config(_STRICT)
class Event(TypedDict):
    """Something that happened to a run."""

    time: Moment
    event: Annotated[str, Field(max_length=100), _cut(100)]
    message: NotRequired[Words]
    phase: NotRequired[PhaseName]
    rank: NotRequired[Count]


@with_config(ConfigDict(strict=True, extra="allow"))
class LogLine(TypedDict):
    """A line of a process' log."""

    time: Moment
    level: Annotated[str, Field(max_length=20)]
    message: str
    job: NotRequired[str]
    rank: NotRequired[Count]
    actor: NotRequired[int | str]
    phase: NotRequired[str]
    iteration: NotRequired[Count]
    traceback: NotRequired[str]


@with_config(_STRICT)
class TestResults(TypedDict):
    """What a model reached on a test set, or on its raw and its cleaned list."""

    accuracy: NotRequired[Share]
    rank1: NotRequired[Share]
    top1: NotRequired[Share]
    map: NotRequired[Share]
    tar: NotRequired[Rates]
    tpir: NotRequired[Rates]
    cmc: NotRequired[Shares]
    roc: NotRequired[Curve]
    open_set: NotRequired[Curve]
    raw: NotRequired["TestResults"]
    cleaned: NotRequired["TestResults"]


def _square(rows: list[list[float]]) -> list[list[float]]:
    if any(len(row) != len(rows) for row in rows):
        raise PydanticCustomError("square", "it is no square matrix")
    return rows


Matrix = Annotated[
    list[Annotated[list[Portion], Field(max_length=MOST_TASKS)]],
    Field(min_length=1, max_length=MOST_TASKS),
    AfterValidator(_square),
]
"""[T, T] a share for each two learning steps."""


@with_config(_STRICT)
class ModelBytes(TypedDict):
    """What a model's numbers take."""

    network: Count
    rows: Count


@with_config(_STRICT)
class Evaluation(TypedDict):
    """What a learning step's model reached."""

    top1: NotRequired[Share]
    map: NotRequired[Share]
    verification: NotRequired[Share]
    seen_top1: NotRequired[Share]
    queries: NotRequired[Count]
    queries_without_match: NotRequired[Count]
    gallery: NotRequired[Count]
    class_accuracy: NotRequired[Share]
    average_accuracy: NotRequired[Share]
    task_accuracy: NotRequired[Share]
    forgetting: NotRequired[Share]
    first_drop: NotRequired[Share]
    old_as_new: NotRequired[Share]
    new_as_old: NotRequired[Share]
    confusion: NotRequired[Matrix]
    model_bytes: NotRequired[ModelBytes]
    cmc: NotRequired[Shares]
    roc: NotRequired[Curve]
    tasks: NotRequired[Shares]
    tests: NotRequired[Annotated[dict[Name, TestResults], Field(max_length=200)]]


@with_config(_STRICT)
class Picture(TypedDict):
    """An image and whom it shows."""

    identity: Annotated[str, _cut(200)]
    jpeg: Jpeg
    score: NotRequired[Share]
    """Of an image that was found: its cosine similarity with the query."""


@with_config(_STRICT)
class Search(TypedDict):
    """An image, and those found for it."""

    query: Picture
    found: Annotated[list[Picture], Field(max_length=100)]


@with_config(_STRICT)
class ShownExemplars(TypedDict):
    """An identity and the first of its exemplars."""

    identity: Annotated[str, _cut(200)]
    jpegs: Annotated[list[Jpeg], Field(max_length=100)]
    before: NotRequired[Annotated[list[Jpeg], Field(max_length=100)]]
    """The same, before their pixels were learned."""


@with_config(_STRICT)
class Exemplars(TypedDict):
    """What a learning step keeps of the images so far."""

    images: Count
    identities: Count
    bytes: Count
    """Of the images as they are stored."""
    pixel_bytes: NotRequired[Count]
    """Of the same as pixels, three bytes each; not said where sizes differ."""
    shown: Annotated[list[ShownExemplars], Field(max_length=1000)]


@with_config(_STRICT)
class Generator(TypedDict):
    """What the card of a generator of features says, among other things."""

    bytes: Count


@with_config(_STRICT)
class Interval(TypedDict):
    """A figure, and where it lies by resampling."""

    value: Share
    low: Share
    high: Share


@with_config(_STRICT)
class Ratio(TypedDict):
    """A quotient, and where it lies by resampling: what it is divided by may come near 0."""

    value: float
    low: float
    high: float


@with_config(_STRICT)
class PointFigures(TypedDict):
    """Two models compared at an operating point."""

    point: Annotated[str, Field(pattern=r"^(top1|map|(tar|tpir)@[0-9.e+-]{1,20})$")]
    old_old: Share
    new_old: Share
    old_new: Share
    new_new: Share
    paragon: NotRequired[Share]
    gain: Interval
    update_gain: Ratio | None
    holds: bool


@with_config(_STRICT)
class Loser(TypedDict):
    """An identity that is found less often than before."""

    identity: Annotated[str, _cut(200)]
    trials: Count
    lost: Count


@with_config(_STRICT)
class Flips(TypedDict):
    """Trials that changed from right to wrong, and back."""

    trials: Count
    right_before: Count
    negative: Count
    positive: Count
    identities: Count
    worse: Count
    worst: Annotated[list[Loser], Field(max_length=1000)]


@with_config(_STRICT)
class Spread(TypedDict):
    """Curves over several random orders."""

    mean: Shares
    least: Shares
    most: Shares


@with_config(_STRICT)
class Backfill(TypedDict):
    """Figures while a gallery is re-embedded."""

    point: str
    share: Shares
    isolated: Shares
    random: Spread


def _curves_fit(found: dict[str, Any]) -> dict[str, Any]:
    """Every backfill curve has as many figures as shares, and is of a point that was compared."""
    points = {point["point"] for point in found["points"]}
    for curve in found["backfill"]:
        every = [curve["isolated"], *curve["random"].values()]
        if curve["point"] not in points or {len(one) for one in every} != {len(curve["share"])}:
            raise PydanticCustomError("curve", "its curves do not belong to its points")
    return found


@with_config(_STRICT)
class Comparison(TypedDict):
    """A model compared with that of an earlier step."""

    step: Step
    points: Annotated[list[PointFigures], Field(min_length=1, max_length=100)]
    holds: bool
    confidence: Share
    resamples: Count
    identities: Count
    flips: Flips
    backfill: Annotated[list[Backfill], Field(max_length=100)]


@with_config(_STRICT)
class Comparisons(TypedDict):
    """A step's model compared with all before: what decides whether it is published."""

    holds: bool
    against: Annotated[
        list[Annotated[Comparison, AfterValidator(_curves_fit)]],
        Field(min_length=1, max_length=MOST_STEPS),
    ]


LEDGER = TypeAdapter(LedgerLine)
PLANNED = TypeAdapter(Annotated[list[PlannedPhase], Field(min_length=1, max_length=1_000_000)])
METRICS_LINE = TypeAdapter(MetricsLine)
EVENT = TypeAdapter(Event)
LOG_LINE = TypeAdapter(LogLine)
EVALUATION = TypeAdapter(Evaluation)
EXAMPLES = TypeAdapter(Annotated[list[Search], Field(max_length=1000)])
EXEMPLARS = TypeAdapter(Exemplars)
GENERATOR = TypeAdapter(Generator)
COMPARISONS = TypeAdapter(Comparisons)
