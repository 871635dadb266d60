"""Evaluates a model, or vectors of another program, on a test set, independently of any run."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from data_shards.files import fingerprint, write_json
from data_shards.pipeline import image_size
from data_shards.settings import InputError
from data_shards.storage.features import feature_name, read_feature
from data_shards.storage.remote import CacheSettings, anywhere
from launch.config.cluster import ClusterSettings
from launch.config.load import explain
from launch.execution.actor_pool import ActorPool
from launch.execution.ray_cluster import cluster
from launch.exits import sigterm
from launch.inference.test_sets import Embedding, Ids, Map, Measurement, Vectors, new_matrix
from launch.inference.worker import Unit, images_of, without_worker
from launch.models.embed import Images
from launch.models.work_folder import locked
from launch.runs.test_sets import TestSet, open_test
from launch.terminal.progress import progress
from monitoring.results import parts
from monitoring.run_folder import TARGETS_FOLDER
from trainer.evaluation import TestSetSettings
from trainer.model import Model
from trainer.teacher import TeacherSettings

_BATCH = 1024  # feature files between two updates of the progress bar


def settings_of_test(**given: Any) -> TestSetSettings:
    """The settings of a test from the command's options. Raises InputError."""
    try:
        return TestSetSettings.model_validate(given)
    except ValidationError as error:
        raise explain(error, "the test set") from error


@dataclass(frozen=True)
class FeatureFiles:
    """`Vectors` read from MegaFace's feature files."""

    folders: dict[str, Path]
    """The folder of each part of a test: "dataset" and, maybe, "distractors"."""
    ending: str
    """What the files' names append to the image's."""
    console: Console

    def __call__(self, test: TestSet, part: str, samples: Ids, target: Path) -> None:
        """Reads the vectors of `samples` into `target`.

        Raises InputError naming a file that is missing, damaged or of another length than others.
        """
        folder, dimension = self.folders[part], self._dimension(test)
        with (
            progress(self.console, f"reading {folder}", len(samples), "files") as hear,
            new_matrix(target, (len(samples), dimension)) as matrix,
        ):
            for begin in range(0, len(samples), _BATCH):
                keys = test.datasets[part].keys(samples[begin : begin + _BATCH])
                for row, key in enumerate(keys, begin):
                    path = folder / feature_name(key, self.ending)
                    vector = read_feature(path)
                    if len(vector) != dimension:
                        raise InputError(
                            f"{path} has {len(vector)} numbers, others have {dimension}: they are "
                            "of several models"
                        )
                    matrix[row] = vector
                hear(begin + len(keys))

    def _dimension(self, test: TestSet) -> int:
        """d, from the feature file of the test's first image."""
        part, samples = next(iter(test.protocol.samples().items()))
        (key,) = test.datasets[part].keys(samples[:1])
        return len(read_feature(self.folders[part] / feature_name(key, self.ending)))


def run_evaluate(
    vectors: Model | FeatureFiles,
    settings: TestSetSettings,
    size: tuple[int, int] | None,
    actors: ClusterSettings,
    out: Path | None,
    console: Console,
) -> dict[str, Any]:
    """The results of a test set, also written to `out`, if given; images are resized to `size`.

    A model's embeddings are stored beside `out`, or in the working directory, until the end, so
    that the same call resumes an interrupted one. Raises InputError, Preempted after SIGTERM.
    """
    test = open_test(settings, "cosine")
    what: dict[str, Any] | None = None  # feature files may have changed, and are read again
    if isinstance(vectors, Model):
        images = Images.open(settings.dataset, size, vectors)
        # distractors are resized to the same size
        size = image_size(images.dataset, images.data)
        of = {"model": vectors.fingerprint, "size": size}
        what = {"test": test.fingerprint, "settings": settings.model_dump(), **of}
    where = out.parent if out is not None else Path()
    where.mkdir(parents=True, exist_ok=True)
    with (
        _scratch(where, what) as scratch,
        _actors(actors, settings.dataset, scratch, console) as map_,
    ):
        how: Vectors
        if isinstance(vectors, Model):
            data = images.data.model_copy(update={"image_size": size})
            how = Embedding(vectors.folder, data, TeacherSettings().batch, map_)
        else:
            how = vectors
        found = Measurement(how, scratch, map_).results(test, scratch)
        if out is not None:
            write_json(out, found)
    return found


@contextmanager
def _scratch(where: Path, what: dict[str, Any] | None) -> Iterator[Path]:
    """A work folder in `where`, named by a hash of its purpose `what`, and deleted on success.

    Without `what` it is a temporary folder, which is always deleted.
    """
    if what is None:
        with tempfile.TemporaryDirectory(dir=where, prefix=".evaluating-") as name:
            yield Path(name)
        return
    folder = where / f".evaluating-{fingerprint(what)}"
    with locked(folder):
        yield folder
        shutil.rmtree(folder)


@contextmanager
def _actors(
    settings: ClusterSettings, dataset: str, folder: Path, console: Console
) -> Iterator[Map]:
    """A map over CPU actors on a Ray cluster that shows its progress."""
    hear: list[Callable[[int], None]] = []

    with cluster(settings) as ray, sigterm() as stop:
        pool = ActorPool(
            ray,
            settings,
            dataset=anywhere(dataset),
            cache=CacheSettings(),
            targets=folder.resolve() / TARGETS_FOLDER,
            stop=stop,
            units=lambda done, of, images: hear[-1](images[0] if images[1] else done),
        )

        def map_(unit: Unit[Any], calls: list[tuple[Any, ...]]) -> list[Any]:
            what = "comparing" if unit is without_worker else "embedding"
            with progress(console, what, *counted(calls)) as shown:
                hear.append(shown)
                return pool.map(unit, calls)

        yield map_


def counted(calls: list[tuple[Any, ...]]) -> tuple[int, str]:
    """How much the units of work have to do, and of what: of images where they are about any."""
    images = sum(images_of(call) for call in calls)
    return (images, "images") if images else (len(calls), "units")


def results_table(name: str, found: dict[str, Any]) -> Table:
    """A table of all figures and counts of a test's results, without the points of curves."""
    table = Table("", "", title=name, title_justify="left", show_header=False)
    table.columns[1].justify = "right"
    for part, results in parts({"tests": {name: found}}).items():
        prefix = part.removeprefix(name).strip()
        for key, value in results.items():
            title = f"{prefix} {key.replace('_', ' ')}".strip()
            if isinstance(value, dict):
                for rate, share in value.items():
                    table.add_row(f"{title} at {rate}", f"{share:.2%}")
            elif isinstance(value, float):
                table.add_row(title, f"{value:.2%}")
            elif isinstance(value, int):
                table.add_row(title, f"{value:,}")
    return table
