"""Arrays that a model gave, in a safetensors file that says which model it was."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data_shards.files import write_atomically
from data_shards.settings import InputError

Ids = NDArray[np.int64]


def write_stored(path: Path, arrays: Mapping[str, NDArray[Any]], model: str) -> None:
    """Keeps `arrays` by name; `model` is the fingerprint of the model that gave them."""
    write_atomically(path, save(dict(arrays), metadata={"model": model}))


def read_stored(path: Path, model: str | None = None) -> dict[str, NDArray[Any]]:
    """The arrays by name. Raises InputError when they are damaged, or not of `model`, if given."""
    try:
        with safe_open(path, framework="numpy") as file:
            found = (file.metadata() or {}).get("model")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} is missing or damaged: restore it from a copy, or move it away and run again"
        ) from error
    if model not in (None, found):
        raise InputError(
            f"{path} comes from model {found}, not {model}: move it away and run again"
        )
    return arrays


def write_embeddings(path: Path, samples: Ids, embeddings: NDArray[np.float32], model: str) -> None:
    """Keeps `embeddings` [n, d], as the model gives them, of dataset rows `samples` [n]."""
    write_stored(path, {"samples": samples, "embeddings": embeddings}, model)


def read_embeddings(path: Path, model: str | None = None) -> tuple[Ids, NDArray[np.float32]]:
    """Dataset rows [n], ascending, and their embeddings [n, d]. Raises InputError."""
    arrays = read_stored(path, model)
    return arrays["samples"], arrays["embeddings"]
