"""What a plan knows of a dataset: numbers of identities and images, of one that need not exist."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.settings import InputError
from data_shards.splits.benchmark import counted_split
from launch.config.run import RunConfig
from launch.runs.continuing import known_names
from launch.runs.run import Run
from trainer.evaluation.protocol import samples_to_embed


@dataclass(frozen=True)
class Split:
    """The numbers of identities and images of each learning step."""

    row_ends: tuple[int, ...]
    """Identities learned after each step."""
    images: tuple[int, ...]
    """Training images of each step."""
    size: tuple[int, int]
    """Height and width of the images, pixels."""
    shards: int | None
    """Bytes of the dataset, if it exists."""
    tested: int | None = None
    """Test images, without those of test sets of their own; none: not known without a dataset."""


def split_of(config: RunConfig, identities: int | None, images: int | None) -> Split:
    """The split of a dataset with so many `identities` and `images`, or of the existing dataset.

    Raises InputError when there is neither, or when the benchmark needs more identities.
    """
    if identities is None and images is None:
        if not config.dataset_is_there():
            raise InputError(
                f"{config.dataset} holds no dataset to read counts from: say --identities and "
                "--images, or build it"
            )
        run = Run.open(Path(), config)
        size = config.data.image_size or run.dataset.manifest["image_size"]
        files = run.dataset.manifest["files"].values()
        samples = tuple(len(own) for own in run.benchmark.steps)
        shards = sum(facts["bytes"] for facts in files)
        tested = len(samples_to_embed(run.benchmark))
        return Split(run.benchmark.row_ends, samples, _known(size), shards, tested)
    if identities is None or images is None:
        raise InputError("--identities and --images go together: say both, or neither")
    known, drawn = known_names(config, Path()), config.benchmark
    if known is not None:  # then no new image is held out as one of step 0
        drawn = drawn.model_copy(update={"seen_identities": 0})
    rows, samples = counted_split(identities, images, drawn)
    if known is not None:
        rows, samples = (len(known), *(len(known) + last for last in rows)), (0, *samples)
    size = config.data.image_size
    if size is None and config.glyphs is not None:
        size = (config.glyphs.image_size, config.glyphs.image_size)
    return Split(rows, samples, _known(size), None)


def _known(size: Any) -> tuple[int, int]:
    if size is None:
        raise InputError("the images' size is not known: set data.image_size=HxW")
    height, width = size
    return height, width
