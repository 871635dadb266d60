"""Imports a source: from its original files to a dataset, resuming after an interruption."""

import difflib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_shards.images import ImageSettings
from data_shards.settings import InputError, Settings
from data_shards.sources.registry import SOURCES, Source
from data_shards.writing.destination import Destination
from data_shards.writing.shard_builder import Item
from data_shards.writing.writer import write_dataset
from untrusted.json_text import parse_json
from untrusted.yaml_text import parse_yaml


def source_named(name: str) -> Source:
    """A source by its name. Raises InputError with the nearest one."""
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(SOURCES)}"
        raise InputError(f"unknown source {name!r}: {hint}")
    return SOURCES[name]


def source_settings(name: str, path: str, options: Iterable[str]) -> Settings:
    """A source's settings from its path and ``key=value`` options (values are YAML).

    Raises InputError naming the option and what is allowed.
    """
    model = source_named(name).settings
    values: dict[str, Any] = {"path": path}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise InputError(f"{option!r} is no option of {name}: write key=value")
        if key not in model.model_fields:
            known = [field for field in model.model_fields if field != "path"]
            raise InputError(f"{name} has no option {key!r}: it has {', '.join(known) or 'none'}")
        is_text = model.model_fields[key].annotation is str
        values[key] = text if is_text else parse_yaml(text, f"option {option[:80]!r}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{name}: {key}: {first['msg']} (given: {first['input']!r})") from error


def finished(place: Destination, source: dict[str, Any]) -> bool:
    """Whether a destination holds the complete dataset of just this import.

    If so, its journal is deleted.
    """
    try:
        manifest = parse_json(place.manifest() or b"")
    except ValueError:
        return False
    if not isinstance(manifest, dict) or manifest.get("source") != source:
        return False
    place.forget_journal()
    return True


def import_source(
    name: str,
    settings: Settings,
    out: Path | Destination,
    image: ImageSettings | None = None,
    shard_samples: int = 4096,
    max_refused: float = 0.0,
    processes: int = 0,
    progress: Callable[[int], None] = lambda consumed: None,
) -> dict[str, Any]:
    """Writes the images of a source as a dataset and returns the manifest; see `write_dataset`.

    A second call with the same arguments resumes behind the last finished shard of an interrupted
    one; the result is byte for byte that of an undisturbed import.
    """
    source, image = SOURCES[name], image or ImageSettings()
    tables = source.tables(settings) if source.tables else {}

    def read(start: int) -> Iterable[Item]:
        if source.seeks:
            return source.read(settings, start)
        return islice(source.read(settings), start, None)

    return write_dataset(
        images=read,
        out=out,
        source=description(name, settings, image),
        shard_samples=shard_samples,
        max_refused=max_refused,
        tables=tables,
        image=image,
        processes=processes,
        progress=progress,
    )


def description(name: str, settings: Settings, image: ImageSettings) -> dict[str, Any]:
    """The description of an import's source in the manifest."""
    return {name: settings.model_dump(mode="json"), "images": image.model_dump(mode="json")}
