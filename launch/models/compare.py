"""`perennial compat`: may a new model's queries be compared with an old model's gallery?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from data_shards.pipeline import PipelineSettings, image_size, resized
from data_shards.settings import InputError
from data_shards.splits.benchmark import build_benchmark
from data_shards.storage.dataset import ShardDataset
from launch.config.load import kept_config, load_config
from launch.inference.embed import embed, fast_embedder, units
from launch.runs.model_names import model_folder
from monitoring.run_folder import EMBEDDINGS_FILE, run_of_model
from trainer.arrays import read_embeddings
from trainer.evaluation.compatibility import CompatibilitySettings
from trainer.evaluation.compatibility.comparison import compare
from trainer.evaluation.compatibility.trials import Trials, of_benchmark, of_dataset
from trainer.evaluation.compatibility.vectors import Embedded
from trainer.model import Model
from trainer.teacher import TeacherSettings


@dataclass(frozen=True)
class TwoModelTest:
    """The dataset and trials that two models are compared on, and how its images are read."""

    dataset: ShardDataset
    trials: Trials
    data: PipelineSettings
    settings: CompatibilitySettings
    stored: str | None
    """The dataset's location, if embeddings of it that runs have stored may be used."""

    @classmethod
    def open(cls, benchmark: str, size: tuple[int, int] | None) -> "TwoModelTest":
        """Opens the test in a run's configuration (.yaml), or in a dataset's folder or URL.

        Raises InputError.
        """
        if not benchmark.endswith((".yaml", ".yml")):
            dataset, data = ShardDataset.open(benchmark), PipelineSettings(image_size=size)
            return cls(dataset, of_dataset(dataset), data, CompatibilitySettings(), None)
        config = load_config(Path(benchmark))
        dataset = ShardDataset.open(config.dataset, config.data.cache)
        parts = build_benchmark(dataset, config.benchmark)
        trials = of_benchmark(dataset, parts, config.evaluation.distance, benchmark)
        data = config.data if size is None else config.data.model_copy(update={"image_size": size})
        settings = config.evaluation.compatibility or CompatibilitySettings()
        return cls(dataset, trials, data, settings, config.dataset_location())

    def embedded(self, model: Model, progress: Callable[..., None]) -> Embedded:
        """The model's embeddings of the test's images: those stored by its run, or computed now.

        `progress` is called with the number of images `completed` and in `total`.
        """
        if (kept := self._kept(model)) is not None:
            return kept
        return self.embedded_by(fast_embedder(model, TeacherSettings()), model, progress)

    def embedded_by(self, embedder: Any, model: Model, progress: Callable[..., None]) -> Embedded:
        """The embeddings of the test's images by an `embedder` that is shown what `model` is."""
        samples, settings = self.trials.samples, TeacherSettings()
        data = resized(self.data, self.dataset, model.image_size)
        image_size(self.dataset, data)
        data = data.model_copy(update={"centre": model.centre})
        parts: list[NDArray[np.float32]] = []
        done = 0
        for _, own in units(self.dataset, samples):
            parts.append(embed(embedder, self.dataset, own, data, settings.batch))
            progress(completed=(done := done + len(own)), total=len(samples))
        return Embedded(samples, np.concatenate(parts))

    def _kept(self, model: Model) -> Embedded | None:
        """The embeddings that the model's run has stored, if of all these images and size."""
        beside, run = model.folder / ".." / EMBEDDINGS_FILE, run_of_model(model.folder)
        if self.stored is None or run is None or not beside.exists():
            return None
        try:
            config = kept_config(run)
        except InputError:
            return None
        same_images = config.data.image_size == self.data.image_size
        if config.dataset_location() != self.stored or not same_images:
            return None
        try:
            kept = Embedded(*read_embeddings(beside, model.fingerprint))
        except InputError:  # of an earlier model in the same folder
            return None
        return kept if np.isin(self.trials.samples, kept.samples).all() else None


def compatibility(
    new: Path,
    old: Path,
    benchmark: str,
    paragon: Path | None,
    changes: dict[str, Any],
    size: tuple[int, int] | None,
    console: Console,
) -> dict[str, Any]:
    """The results of `compare` for the models in these folders, with `changes` to its settings.

    Raises InputError.
    """
    test = TwoModelTest.open(benchmark, size)
    try:
        settings = CompatibilitySettings.model_validate(test.settings.model_dump() | changes)
    except ValidationError as error:
        first = error.errors()[0]
        words = first["msg"].removeprefix("Value error, ")
        raise InputError(f"--{first['loc'][0]}: {words} (given: {first['input']!r})") from error
    test.trials.points(settings.at)  # before anything is embedded
    given = {"old": old, "new": new} | ({} if paragon is None else {"paragon": paragon})
    models = {name: Model.open(model_folder(folder)) for name, folder in given.items()}
    columns = TextColumn("embedding, {task.description}"), BarColumn(), MofNCompleteColumn()
    embedded: dict[str, Embedded] = {}
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as shown:
        for name, model in models.items():
            tell = partial(shown.update, shown.add_task(f"{name} model", total=None))
            embedded[name] = test.embedded(model, tell)
    torch.set_num_threads(1)  # many small operations: a second thread mostly waits
    with console.status("comparing"):
        found = compare(
            test.trials,
            embedded["old"],
            embedded["new"],
            embedded.get("paragon"),
            settings,
            test.dataset.names,
        )
    left_out = test.trials.left_out(settings.at)
    return {"new": str(new), "old": str(old), "benchmark": benchmark, **found, "left_out": left_out}
