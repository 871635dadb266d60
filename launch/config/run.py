"""The model of a run's configuration: every key that decides its results."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from data_shards.pipeline import PipelineSettings
from data_shards.settings import UNDECIDING, Settings
from data_shards.sources.glyphs import GlyphSettings
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.remote import anywhere, is_remote
from launch.config.cluster import ClusterSettings
from trainer.backbones import EmbedderSettings
from trainer.evaluation import EvaluationSettings
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods import METHODS, Method
from trainer.methods.wants import Answers
from trainer.optimizers import TrainingSettings
from trainer.teacher import TeacherSettings
from trainer.weights import StartSettings


class RunConfig(Settings):
    """Everything that decides a run."""

    dataset: str
    """Folder of the shards, or any fsspec URL (s3://..., https://...); see `data.cache`."""
    glyphs: Annotated[GlyphSettings | None, UNDECIDING] = None
    """Build the shards from glyphs when the folder holds none yet."""
    benchmark: BenchmarkSettings = BenchmarkSettings()
    """Learning steps and test sets."""
    data: PipelineSettings = PipelineSettings()
    """Reading and augmenting images."""
    adopted: Path | None = None
    """Folder of a model that `perennial adopt` wrote: step 0 is not trained but taken from it, and
    every method must start from scratch. Its classifier, if it has one, knows just the identities
    of step 0; without one, rows of old identities are synthesised (bct-sys)."""
    continues: Path | None = None
    """Folder of a finished run: every method and seed begins with its last model there, as step 0,
    and learns the identities of `dataset` that this model does not know, in `benchmark.steps`
    further steps."""
    start: StartSettings | None = None
    """A file of weights, that every training begins with which would begin with random ones: that
    of step 0, and later ones of methods that start from scratch, such as bct. A path alone stands
    for `file`."""
    embedder: EmbedderSettings = EmbedderSettings()
    """The network."""
    classifier: ClassifierSettings = ClassifierSettings()
    """The softmax loss over the identities, and its memory."""
    training: TrainingSettings = TrainingSettings()
    """Length and rate of each learning step, of methods that have no `training` of their own."""
    teacher: TeacherSettings = TeacherSettings()
    """How the previous model is asked."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How models are tested after every step."""
    methods: dict[str, Method] = Field(min_length=1)
    """The methods to compare, by a name of your choice; `kind` says which it is and may be left
    out where the name says it."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Each method runs once a seed; results are mean ± standard deviation over them, all
    at the one split that `benchmark.seed` draws."""
    cluster: Annotated[ClusterSettings, UNDECIDING] = ClusterSettings()
    """Where the work runs."""

    @model_validator(mode="before")
    @classmethod
    def _methods_change_the_runs_model(cls, values: Any) -> Any:
        """Fills in what a method's own `embedder`, `classifier` or `training` leaves out."""
        if not isinstance(values, Mapping) or not isinstance(values.get("methods"), Mapping):
            return values

        def filled(method: Any) -> Any:
            if not isinstance(method, Mapping):
                return method
            own = {part: method.get(part) for part in ("embedder", "classifier", "training")}
            return {
                **method,
                **{
                    part: {**(values.get(part) or {}), **changed}
                    for part, changed in own.items()
                    if isinstance(changed, Mapping)
                },
            }

        methods = {name: filled(method) for name, method in values["methods"].items()}
        return {**values, "methods": methods}

    @field_validator("start", mode="before")
    @classmethod
    def _path_alone(cls, start: Any) -> Any:
        return {"file": start} if isinstance(start, str) else start

    @field_validator("dataset")
    @classmethod
    def _dataset_can_be_read(cls, location: str) -> str:
        is_remote(location)
        return location.removeprefix("file://")

    def dataset_location(self) -> str:
        """The dataset's URL, or its absolute path: workers have other working directories."""
        return anywhere(self.dataset)

    def placed(self) -> dict[str, Any]:
        """Plain values with absolute locations: workers run in other working directories."""
        values = _placed(self.model_dump())
        values["dataset"] = anywhere(self.dataset)
        for test in values["evaluation"]["tests"].values():
            for part in ("dataset", "distractors"):
                test[part] = test[part] and anywhere(test[part])
        return values

    def dataset_is_there(self) -> bool:
        """Whether the dataset exists; of a remote one it is assumed."""
        return is_remote(self.dataset) or (Path(self.dataset) / "manifest.json").exists()

    @field_validator("methods", mode="before")
    @classmethod
    def _kind_from_name(cls, methods: Any) -> Any:
        if not isinstance(methods, Mapping):
            raise ValueError("must map names to methods, such as {finetune: {}}")
        named = {}
        for name, values in methods.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+_.-]{,99}", str(name)):
                raise ValueError(
                    f"{str(name)[:120]!r} is no name: use up to 100 letters, digits and + _ . -"
                )
            values = dict(values or {})
            if "kind" not in values:
                if name not in METHODS:
                    near = difflib.get_close_matches(str(name), METHODS, 1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise ValueError(f"{name}: say its kind, one of {', '.join(METHODS)}{hint}")
                values["kind"] = name
            named[str(name)] = values
        return named

    @field_validator("methods")
    @classmethod
    def _recipes_can_be_built(cls, methods: dict[str, Method]) -> dict[str, Method]:
        for method in methods.values():
            method.recipe()
        return methods

    @property
    def learning_steps(self) -> int:
        """The number of learning steps, including the one that `continues` begins with."""
        return self.benchmark.steps + (self.continues is not None)

    @model_validator(mode="after")
    def _begins_and_ends(self) -> "RunConfig":
        if self.adopted is not None and self.continues is not None:
            raise ValueError(
                "adopted and continues both say which model is the first: leave one out"
            )
        drawn = self.benchmark.file is None and self.benchmark.evaluate == "test"
        measured = self.evaluation.tests or self.benchmark.classified != "none"
        if drawn and self.benchmark.test_identities == 0 and not measured:
            raise ValueError(
                "benchmark.test_identities = 0 leaves nothing to evaluate on: raise it, name test "
                "sets in evaluation.tests, or write benchmark.classified=query"
            )
        return self

    @model_validator(mode="after")
    def _counts_fit(self) -> "RunConfig":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat a value")
        own = {f"methods.{n}.training": m.training for n, m in self.methods.items() if m.training}
        for key, training in {"training": self.training, **own}.items():
            self._batch_fits(key, training)
        compared = self.evaluation.compatibility
        if compared and compared.paragon is not None and compared.paragon not in self.methods:
            raise ValueError(
                f"evaluation.compatibility.paragon is {compared.paragon}, which is none of the "
                f"methods {', '.join(self.methods)}"
            )
        return self

    def _batch_fits(self, key: str, training: TrainingSettings) -> None:
        """Raises ValueError when a batch of the settings `key` cannot be shared out."""
        workers, order = self.cluster.workers, self.data.order
        if training.batch < workers:
            raise ValueError(
                f"{key}.batch is {training.batch}, fewer than cluster.workers = {workers}: raise "
                "it or lower the workers"
            )
        if training.batch // max(1, workers) < training.accumulate:
            raise ValueError(
                f"{key}.accumulate = {training.accumulate} leaves a worker no image a part: lower "
                f"it or cluster.workers, or raise {key}.batch"
            )
        if order.kind == "identities" and training.batch % order.images_per_identity:
            raise ValueError(
                f"{key}.batch = {training.batch} is no multiple of "
                f"data.order.images_per_identity = {order.images_per_identity}: change either"
            )

    @model_validator(mode="after")
    def _teacher_sees_what_is_trained_on(self) -> "RunConfig":
        keys = "crop", "shift", "erase"
        changes = {key: getattr(self.data.augmentation, key) for key in keys}
        used = [f"data.augmentation.{key} = {value}" for key, value in changes.items() if value]
        asking = [n for n, method in self.methods.items() if method.recipe().want(Answers)]
        if used and asking and self.teacher.mode == "cached":
            raise ValueError(
                f"teacher.mode = cached answers for images without {' and '.join(used)}, and "
                f"{', '.join(asking)} would compare with that: set teacher.mode=online, or 0"
            )
        return self


def _placed(value: Any) -> Any:
    """Plain values, with every path absolute."""
    if isinstance(value, Path):
        return str(value.expanduser().resolve())
    if isinstance(value, dict):
        return {key: _placed(inner) for key, inner in value.items()}
    return [_placed(inner) for inner in value] if isinstance(value, list | tuple) else value
