"""Compatibility: may a new model's queries be compared with an old model's gallery?

This module has the settings, the modules beside it the pure functions.
"""

from pydantic import Field, field_validator

from data_shards.settings import Settings
from trainer.evaluation.compatibility.points import Point


class CompatibilitySettings(Settings):
    """How each learning step's model is compared with those before it."""

    at: tuple[str, ...] = ()
    """Operating points: top1, map, tar@RATE (of pairs, at a false accept rate), tpir@RATE (of
    searches, at a false positive identification rate); none: top1 and tar@1e-2, where the test can
    tell them."""
    paragon: str | None = None
    """Name of the run's method that trains without constraint: what backfilling the whole gallery
    could reach; the update gain is measured against it."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """That the criterion holds, and of the intervals."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of the query identities."""
    gate: bool = False
    """Publish a model only where the criterion holds against the learning step before at every
    operating point."""

    @field_validator("at")
    @classmethod
    def _points_are_known(cls, at: tuple[str, ...]) -> tuple[str, ...]:
        for name in at:
            Point.parse(name)
        return at
