"""Reads a run's configuration: one YAML file and dotted overrides; errors name the key."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_origin

from pydantic import ValidationError

from data_shards.settings import InputError, Settings
from data_shards.storage.remote import check_no_secret
from launch.config.absent import no_config, no_run
from launch.config.run import RunConfig
from launch.config.templates import config_file
from monitoring.run_folder import CONFIG_FILE
from trainer.methods import METHODS
from untrusted.text import printable
from untrusted.yaml_text import parse_yaml, read_yaml

_SHOWN = 120
"""Most characters of a wrong value that an error repeats."""


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
    """The settings models that a field may hold; several if they are told apart by a `kind`."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, Settings)]


def _nearest_key(unknown: str, parents: tuple[str, ...], kind: str | None) -> str:
    """A hint at the key that was probably meant by the `unknown` one below `parents`."""
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
        return "; `perennial config --all` lists every key"
    return f"; did you mean {'.'.join([*parents, near[0]])}?"


def explain(error: ValidationError, source: str) -> InputError:
    """The first problem of a configuration, as one line."""
    every = error.errors()  # unknown keys first: a missing key may only be misspelt
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

    `path` may be the name of one that comes along, see `config_file`. Raises InputError naming
    the file, the key and what is allowed.
    """
    path = config_file(path)
    try:
        values = read_yaml(path)
    except FileNotFoundError as error:
        raise no_config(path) from error
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
    """The configuration stored in a run folder. Raises InputError."""
    path = folder / CONFIG_FILE
    try:
        return RunConfig.model_validate(read_yaml(path))
    except FileNotFoundError as error:
        raise no_run(folder) from error
    except (OSError, ValueError) as error:
        why = explain(error, "it") if isinstance(error, ValidationError) else error
        raise InputError(f"{path} is damaged ({why}): restore it or use another --out") from error


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The dotted keys whose values differ between two nested configurations."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = [differences(old.get(k), new.get(k), f"{key}.{k}") for k in {**old, **new}]
        return [line for lines in inner for line in lines]
    return [] if old == new else [f"{key[1:]} (was {old!r}, now {new!r})"]


def locations(values: Any) -> Iterator[str]:
    """Every URL among nested plain values."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        for value in values:
            yield from locations(value)
    elif isinstance(values, str) and "://" in values:
        yield values
