"""A run's configuration: one YAML file, dotted overrides, clear errors."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import Field, ValidationError, field_validator, model_validator

from data_shards.benchmark_settings import BenchmarkSettings
from data_shards.pipeline import PipelineSettings
from data_shards.remote import anywhere, check_no_secret, is_remote
from data_shards.settings import InputError, Settings
from data_shards.sources.glyphs import GlyphSettings
from launch.cluster_settings import ClusterSettings
from launch.remembered import locations
from trainer.backbones import EmbedderSettings
from trainer.evaluation import EvaluationSettings
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods import METHODS, Method
from trainer.optimizers import NOT_DECIDING, TrainingSettings
from trainer.teacher import TeacherSettings
from untrusted.text import printable
from untrusted.yaml_text import parse_yaml, read_yaml

_SHOWN = 120
"""Characters of a wrong value that an error repeats."""


class RunConfig(Settings):
    """Everything that decides a run."""

    dataset: str
    """Folder of the shards, or any fsspec URL (s3://..., https://...); see `data.cache`."""
    glyphs: GlyphSettings | None = None
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
    embedder: EmbedderSettings = EmbedderSettings()
    """The network."""
    classifier: ClassifierSettings = ClassifierSettings()
    """The softmax loss over the identities, and its memory."""
    training: TrainingSettings = TrainingSettings()
    """Length and rate of each learning step."""
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
    cluster: ClusterSettings = ClusterSettings()
    """Where the work runs."""

    @model_validator(mode="before")
    @classmethod
    def _methods_change_the_runs_model(cls, values: Any) -> Any:
        """Fills in what a method's own `embedder` or `classifier` leaves out."""
        if not isinstance(values, Mapping) or not isinstance(values.get("methods"), Mapping):
            return values

        def filled(method: Any) -> Any:
            if not isinstance(method, Mapping):
                return method
            own = {part: method.get(part) for part in ("embedder", "classifier")}
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

    @field_validator("dataset")
    @classmethod
    def _dataset_can_be_read(cls, location: str) -> str:
        is_remote(location)
        return location.removeprefix("file://")

    def dataset_location(self) -> str:
        """The dataset's URL, or its absolute path: workers have other working directories."""
        return anywhere(self.dataset)

    def placed(self) -> dict[str, Any]:
        """Plain values with every location as it is known in any working directory."""
        values = _placed(self.model_dump())
        values["dataset"] = anywhere(self.dataset)
        for test in values["evaluation"]["tests"].values():
            for part in ("dataset", "distractors"):
                test[part] = test[part] and anywhere(test[part])
        return values

    def dataset_is_there(self) -> bool:
        """Whether a dataset was built; a remote one is taken to be."""
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
        """Learning steps, with the one that another run learned."""
        return self.benchmark.steps + (self.continues is not None)

    @model_validator(mode="after")
    def _begins_and_ends(self) -> "RunConfig":
        if self.adopted is not None and self.continues is not None:
            raise ValueError(
                "adopted and continues both say which model is the first: leave one out"
            )
        drawn = self.benchmark.file is None and self.benchmark.evaluate == "test"
        if drawn and self.benchmark.test_identities == 0 and not self.evaluation.tests:
            raise ValueError(
                "benchmark.test_identities = 0 leaves nothing to evaluate on: raise it, or name "
                "test sets in evaluation.tests"
            )
        return self

    @model_validator(mode="after")
    def _counts_fit(self) -> "RunConfig":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} repeat a value")
        if self.training.batch < self.cluster.workers:
            raise ValueError(
                f"training.batch is {self.training.batch}, fewer than cluster.workers = "
                f"{self.cluster.workers}: raise it or lower the workers"
            )
        if self.training.batch // max(1, self.cluster.workers) < self.training.accumulate:
            raise ValueError(
                f"training.accumulate = {self.training.accumulate} leaves a worker no image a part:"
                " lower it or cluster.workers, or raise training.batch"
            )
        compared = self.evaluation.compatibility
        if compared and compared.paragon is not None and compared.paragon not in self.methods:
            raise ValueError(
                f"evaluation.compatibility.paragon is {compared.paragon}, which is none of the "
                f"methods {', '.join(self.methods)}"
            )
        order = self.data.order
        if order.kind == "identities" and self.training.batch % order.images_per_identity:
            raise ValueError(
                f"training.batch = {self.training.batch} is no multiple of "
                f"data.order.images_per_identity = {order.images_per_identity}: change either"
            )
        return self

    @model_validator(mode="after")
    def _teacher_sees_what_is_trained_on(self) -> "RunConfig":
        changes = {key: getattr(self.data.augmentation, key) for key in ("shift", "erase")}
        used = [f"data.augmentation.{key} = {value}" for key, value in changes.items() if value]
        asking = [name for name, method in self.methods.items() if method.recipe().needs.answers]
        if used and asking and self.teacher.mode == "cached":
            raise ValueError(
                f"teacher.mode = cached answers for images without {' and '.join(used)}, and "
                f"{', '.join(asking)} would compare with that: set teacher.mode=online, or 0"
            )
        return self

    def deciding(self) -> dict[str, Any]:
        """The part of the configuration that a result depends on, as plain values."""
        values = self.model_dump(mode="json")
        del values["cluster"], values["glyphs"], values["benchmark"]["file"]
        if self.benchmark.sha256 is None:  # a file counts by its content, wherever it lies
            del values["benchmark"]["sha256"]
        for key in ("threads", "prefetch", "cache"):
            del values["data"][key]
        del values["classifier"]["memory"]
        del values["evaluation"]["compatibility"]  # the phase has a fingerprint of its own
        for key in NOT_DECIDING:
            del values["training"][key]
        del values["training"]["guard"]["max_rewinds"]
        return values


def _placed(value: Any) -> Any:
    """Plain values, with every path absolute."""
    if isinstance(value, Path):
        return str(value.expanduser().resolve())
    if isinstance(value, dict):
        return {key: _placed(inner) for key, inner in value.items()}
    return [_placed(inner) for inner in value] if isinstance(value, list | tuple) else value


def fields(model: type[Settings] = RunConfig, prefix: str = "") -> Iterable[tuple[str, Any, str]]:
    """Every (dotted key, default, documentation) of a configuration model.

    NAME stands for a name of the user's choice.
    """
    for name, field in model.model_fields.items():
        inner = _settings_within(field.annotation)
        chosen = "NAME." if get_origin(field.annotation) is dict else ""
        for kind in inner:
            yield from fields(kind, f"{prefix}{name}.{chosen}")
        if not inner:
            default = (
                "(required)"
                if field.is_required()
                else field.get_default(call_default_factory=True)
            )
            yield prefix + name, default, " ".join((field.description or "").split())


def _settings_within(annotation: Any) -> list[type[Settings]]:
    """The settings that a field may hold: several, where a `kind` tells them apart."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, Settings)]


def _nearest_key(unknown: str, parents: tuple[str, ...], kind: str | None) -> str:
    """A hint at the key that was probably meant, beside the unknown one."""
    model = METHODS[kind] if kind else RunConfig
    prefix = (4 if "of" in parents else 2) if kind else 0  # methods.NAME, methods.NAME.of.KIND
    above = parents[prefix:]
    keys = [key.split(".") for key, _, _ in fields(model)]
    siblings = {
        key[len(above)]
        for key in keys
        if len(key) > len(above)
        and all(own in (given, "NAME") for own, given in zip(key, above, strict=False))
    }
    near = difflib.get_close_matches(unknown, sorted(siblings), 1, cutoff=0.5)
    if not near:
        return "; `perennial config` lists every key"
    return f"; did you mean {'.'.join([*parents, near[0]])}?"


def explain(error: ValidationError, source: str) -> InputError:
    """The first problem of a configuration, as one line."""
    every = error.errors()  # a key that is missing may only be misspelt
    first = next((e for e in every if e["type"] == "extra_forbidden"), every[0])
    location, kind = tuple(map(str, first["loc"])), None
    if location[:1] == ("methods",) and len(location) > 2:  # pydantic puts the kind behind the name
        kind, location = location[2], location[:2] + location[3:]
        if location[2] == "of" and len(location) > 4:
            kind, location = location[4], location[:4] + location[5:]
    for place in range(len(location) - 2):  # and behind the key of anything else that has one
        if location[place : place + 2] in (("classifier", "margin"), ("data", "order")):
            location = location[: place + 2] + location[place + 3 :]
    key = ".".join(location) or "configuration"
    if first["type"] == "extra_forbidden":
        hint = _nearest_key(location[-1], location[:-1], kind)
        return InputError(f"{source}: unknown key {key}{hint}")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "union_tag_not_found":
        message = f"say which, by {key}.kind"
    given = "" if isinstance(first["input"], dict) else f" (given: {_shortened(first['input'])})"
    return InputError(printable(f"{source}: {key}: {message}{given}"))


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r} is no override: write key=value, such as training.batch=64")
    at = values
    *parents, last = key.split(".")
    for parent in parents:
        inner = at.setdefault(parent, {})
        if inner is None:
            inner = at[parent] = {}
        if not isinstance(inner, dict):
            raise InputError(f"override {override!r}: {parent} is a value, not a group of keys")
        at = inner
    at[last] = parse_yaml(text, f"override {override[:80]!r}")


def load_config(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a configuration file and applies ``key=value`` overrides.

    Raises InputError naming the file, the key and what is allowed.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "none there"
        raise InputError(f"{path} does not exist (in {path.parent}: {known})") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold keys and values, see configs/demo.yaml")
    for override in overrides:
        _set(values, override)
    for location in locations(values):
        check_no_secret(location)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise explain(error, str(path)) from error


def kept_config(folder: Path) -> RunConfig:
    """The configuration that a run folder was made by. Raises InputError."""
    path = folder / "run.yaml"
    try:
        return RunConfig.model_validate(read_yaml(path))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is no run folder (no run.yaml): give one, such as runs/demo"
        ) from error
    except (OSError, ValueError) as error:
        why = explain(error, "it") if isinstance(error, ValidationError) else error
        raise InputError(f"{path} is damaged ({why}): restore it or use another --out") from error


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The dotted keys whose values differ between two nested configurations."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = [differences(old.get(k), new.get(k), f"{key}.{k}") for k in {**old, **new}]
        return [line for lines in inner for line in lines]
    return [] if old == new else [f"{key[1:]} (was {old!r}, now {new!r})"]
