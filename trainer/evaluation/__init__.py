"""Evaluation protocols: pure functions of embeddings and labels."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data_shards.settings import UNDECIDING, Settings
from data_shards.storage.remote import normal
from trainer.evaluation.compatibility import CompatibilitySettings

Distance = Literal["cosine", "euclidean"]


class TestSetSettings(Settings):
    """A test set of its own, embedded and measured after every learning step."""

    dataset: str
    """Folder or fsspec URL of the test set's shards, as `perennial shards import` writes them."""
    protocol: Literal["verification", "identification", "templates", "retrieval"]
    """What is measured, see docs/protocols.md. verification: 10-fold accuracy and TAR at FAR of the
    table `pairs`. identification: rank-1 of every image's mates among distractors. templates: TAR
    at FAR of `template_pairs`, TPIR at FPIR of `search`. retrieval: CMC, mAP and mINP of the images
    with role query in those with role gallery or distractor."""
    distractors: str | None = None
    """Folder or URL of the distractors' shards, for identification; none: the dataset's own
    images with role distractor."""
    mirror: bool | None = None
    """Whether an image's vector is the sum of its own embedding and of its mirror image's (twice
    the time); none: for verification only, as is customary there."""

    @field_validator("dataset", "distractors")
    @classmethod
    def _can_be_read(cls, location: str | None) -> str | None:
        return None if location is None else normal(location)

    @model_validator(mode="after")
    def _distractors_have_a_use(self) -> "TestSetSettings":
        if self.distractors is not None and self.protocol != "identification":
            raise ValueError(f"distractors are for protocol identification, not {self.protocol}")
        return self

    @property
    def mirrored(self) -> bool:
        """`mirror`, decided."""
        return self.protocol == "verification" if self.mirror is None else self.mirror


class EvaluationSettings(Settings):
    """How embeddings are compared."""

    distance: Distance = "cosine"
    """Cosine normalises embeddings first; Euclidean takes them as they are. It does not reach
    verification and identification of `tests` (LFW, MegaFace), which always normalise embeddings,
    nor templates, which normalise each template's vector: their protocols say so."""
    examples: int = 12
    """Queries whose nearest gallery images are kept for the report."""
    tests: dict[str, TestSetSettings] = Field(default={})
    """Test sets of their own, by a name of your choice."""
    # undeciding for the figures of evaluations: comparisons are phases with settings of their own
    compatibility: Annotated[CompatibilitySettings | None, UNDECIDING] = None
    """How each learning step's model is compared with those before it, see docs/compatibility.md;
    none: it is not."""

    @field_validator("tests")
    @classmethod
    def _names_are_plain(cls, tests: dict[str, TestSetSettings]) -> dict[str, TestSetSettings]:
        for name in tests:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"{name!r} is no name: use letters, digits and _ -")
        return tests
