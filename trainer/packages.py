"""Packages that only some users need."""

import importlib
from typing import Any

from data_shards.settings import InputError


def package(name: str, of: str, extra: str = "onnx") -> Any:
    """A module of a package of our extra `extra`, which is needed by what `of` names.

    Raises InputError where it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{of} needs {name.partition('.')[0]}: pip install 'perennial-id[{extra}]'"
        ) from error
