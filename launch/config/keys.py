"""Every configuration key, read from the schema beside this file within milliseconds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA_FILE = Path(__file__).with_name("schema.json")
"""Made by `launch.config.schema`."""
FIRST = (
    "dataset",
    "data.image_size",
    "data.augmentation.flip",
    "benchmark.steps",
    "benchmark.test_identities",
    "continues",
    "embedder.architecture",
    "embedder.dimension",
    "training.iterations",
    "training.batch",
    "training.learning_rate",
    "training.milestones",
    "evaluation.tests.NAME.dataset",
    "evaluation.tests.NAME.protocol",
    "seeds",
    "cluster.workers",
    "cluster.gpu",
)
"""What a newcomer sets, beside `methods`; all else has a default that works."""


class Key(NamedTuple):
    """A configuration key."""

    name: str
    """Dotted; NAME stands for a name of the user's choice, methods.KIND for a method of a kind."""
    default: str
    """As YAML spells it."""
    meaning: str


def json_text(schema: dict[str, Any]) -> str:
    """A schema as it is kept and printed."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def read_schema() -> dict[str, Any]:
    """The schema of configurations."""
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return schema


def kinds_of_methods(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The schema of each kind of method's settings, by its kind."""
    mapping = schema["properties"]["methods"]["additionalProperties"]["discriminator"]["mapping"]
    return {kind: _referred(schema, {"$ref": at}) for kind, at in mapping.items()}


def keys(schema: dict[str, Any]) -> Iterator[Key]:
    """Every key: of a run, then of each kind of method."""
    yield from _keys(schema, schema, "")
    for kind, settings in kinds_of_methods(schema).items():
        for key in _keys(schema, settings, f"methods.{kind}."):
            if not key.name.endswith(".kind"):
                yield key


def _keys(schema: dict[str, Any], part: dict[str, Any], prefix: str) -> Iterator[Key]:
    for name, field in part.get("properties", {}).items():
        own, key, named = field, f"{prefix}{name}", field.get("additionalProperties")
        if isinstance(named, dict):
            own, key = named, f"{key}.NAME"
        choices = own.get("anyOf", own.get("oneOf", [own]))
        within = [one for one in (_referred(schema, c) for c in choices) if "properties" in one]
        if within and not (named and "discriminator" in named):  # methods are listed by kind
            for settings in within:
                yield from _keys(schema, settings, f"{key}.")
            continue
        default = json.dumps(field["default"]) if "default" in field else "(required)"
        yield Key(f"{prefix}{name}", default, field.get("description", ""))


def _referred(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    at = part.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = schema["$defs"][at] if at else part
    return found
