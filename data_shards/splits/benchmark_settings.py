"""The configuration of learning steps and test sets."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_shards.files import pinned_sha256
from data_shards.settings import UNDECIDING, InputError, Settings
from data_shards.splits.benchmark_file import BenchmarkFile, read_benchmark


class BenchmarkSettings(Settings):
    """How identities are split into learning steps and test sets: drawn from images with role
    train as the keys below say, or as a file says."""

    file: Annotated[Path | None, UNDECIDING] = None
    """A benchmark file (`perennial shards benchmark`) that names the identities of each learning
    step and the images to test; of the other keys only `steps` and `sha256` go with it. None:
    identities are drawn."""
    sha256: str | None = None
    """Of `file`; a file with another content is refused. None: filled in when the run begins."""
    steps: int = 5
    """T, learning steps; training identities are split over them randomly and equally. With
    `file`, the number of steps that it has."""
    first_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training identities that step 0 learns, the others being split equally over the
    steps after it; none: all steps are equal."""
    train_identities: int | None = None
    """Identities to learn, over all steps; none: all that are not tested on."""
    test_identities: int | None = Field(default=None, ge=0)
    """Identities that no step trains on; each needs what `queries` says. 0 where
    `evaluation.tests` are enough; none: a fifth of the identities, 1,500 at most. With
    `continues`, they are drawn from the new ones."""
    evaluate: Literal["test", "validation"] = "test"
    """Whom to evaluate on: the test identities, or a share of the *training* identities that is
    then left out of training (to choose settings without seeing the test identities)."""
    validation_identities: int = 0
    """Training identities held out when `evaluate` is "validation"."""
    query_cameras: int = Field(default=2, ge=1)
    """Cameras of each test identity whose images are queries, or, where queries are drawn image by
    image, how many images are; fewer where it has no more. Its others are the gallery."""
    queries: Literal["cameras", "images", "role"] = "cameras"
    """Which images of test identities are queries, all others of role train being the gallery.
    cameras: those of some cameras, of identities that two took images of. images: some images of
    each identity that has two, whoever took them; near-duplicates (neighbours in a film or a burst)
    are then found easily, and figures come out too high: take them out first. Where no image's
    camera is known, cameras means images. role: those of role query (drawn in fonts held out, for
    instance)."""
    classified: Literal["none", "query", "held-out"] = "none"
    """Which images of *learned* identities are classified, for accuracy class by class
    (class-incremental learning). query: those of role query; every identity that is learned then
    needs one. held-out: those of a fifth of its cameras with role train, or a fifth of its images
    where no camera is known, which are then not trained on (to choose settings without seeing test
    images). With either, `test_identities` may be 0."""
    pairs: int = 6000
    """Image pairs of the 10-fold verification test, half of them of one identity."""
    seen_identities: int = 500
    """Identities of step 0 with one image held out of training, to measure forgetting on."""
    seed: int = 0
    """Decides the splits; not the training, which has seeds of its own."""

    @model_validator(mode="after")
    def _file_decides(self) -> "BenchmarkSettings":
        if self.file is None and self.sha256 is not None:
            raise ValueError("sha256 is of benchmark.file: say which, or leave it out")
        if self.file is None:
            return self
        for key in _DRAWN_ONLY:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is decided by benchmark.file: leave it out")
        return self

    def deciding(self) -> dict[str, Any]:
        values = super().deciding()
        if self.sha256 is None:  # a file counts by its content, wherever it lies
            del values["sha256"]
        if self.classified == "none":  # as fingerprints were before there was this key
            del values["classified"]
        return values

    def pinned(self) -> "BenchmarkSettings":
        """These settings with `sha256` filled in.

        Raises InputError when the file is missing or its content has another hash.
        """
        if self.file is None:
            return self
        remedy = "make it with `perennial shards benchmark`"
        found = pinned_sha256("benchmark.file", self.file, self.sha256, remedy)
        return self.model_copy(update={"sha256": found})

    def read_file(self) -> tuple[BenchmarkFile, Path] | None:
        """The benchmark file and its path, or None without one.

        Raises InputError when it has another number of steps than the settings.
        """
        if self.file is None:
            return None
        self.pinned()
        file = read_benchmark(self.file)
        if len(file.steps) != self.steps:
            raise InputError(
                f"benchmark.steps is {self.steps}, but {self.file} has {len(file.steps)} learning "
                f"steps: write benchmark.steps={len(file.steps)}, or give another file"
            )
        return file, self.file


_DRAWN_ONLY = (
    *("first_share", "train_identities", "test_identities", "evaluate", "validation_identities"),
    *("query_cameras", "queries", "classified", "pairs", "seen_identities", "seed"),
)
