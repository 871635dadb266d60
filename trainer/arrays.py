"""Arrays computed by a model, in a safetensors file with the model's fingerprint."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from data_shards.files import write_atomically
from data_shards.settings import InputError
from untrusted.files import open_regular
from untrusted.safetensors import intact, read_header

Ids = NDArray[np.int64]


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], model: str) -> None:
    """Writes `arrays` by name, with the fingerprint of the `model` that computed them."""
    write_atomically(path, save(dict(arrays), metadata={"model": model}))


def stored_model(path: Path) -> str | None:
    """The fingerprint of the model of a file. Raises InputError if it is missing or damaged."""
    try:
        with open_regular(path) as file:
            return read_header(file, os.fstat(file.fileno()).st_size)[1].get("model")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}): move it away and run again"
        ) from error


def read_arrays(
    path: Path, model: str | None = None, needs: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    """Reads the arrays by name.

    Raises InputError when the file is missing or damaged, lacks one that the caller `needs`, or is
    of another model than `model`, if given.
    """
    try:
        with open_regular(path) as file, intact():
            _, metadata = read_header(file, os.fstat(file.fileno()).st_size)
            file.seek(0)
            arrays = load(file.read())
        if absent := set(needs) - arrays.keys():
            raise ValueError(f"no {', '.join(sorted(absent))}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}): move it away and run again"
        ) from error
    found = metadata.get("model")
    if model not in (None, found):
        raise InputError(
            f"{path} comes from model {found}, not {model}: move it away and run again"
        )
    return arrays


def write_embeddings(path: Path, samples: Ids, embeddings: NDArray[np.float32], model: str) -> None:
    """Writes `embeddings` [n, d], not normalised, of dataset rows `samples` [n]."""
    write_arrays(path, {"samples": samples, "embeddings": embeddings}, model)


def read_embeddings(path: Path, model: str | None = None) -> tuple[Ids, NDArray[np.float32]]:
    """Reads dataset rows [n], ascending, and their embeddings [n, d]. Raises InputError."""
    arrays = read_arrays(path, model)
    samples, embeddings = arrays.get("samples"), arrays.get("embeddings")
    if (
        samples is None
        or embeddings is None
        or (samples.dtype, embeddings.dtype) != (np.int64, np.float32)
        or (samples.ndim, embeddings.ndim) != (1, 2)
        or len(samples) != len(embeddings)
        or (samples[:1] < 0).any()
        or (np.diff(samples) <= 0).any()
    ):
        raise InputError(f"{path} holds no vectors of samples: delete it and run again")
    return samples, embeddings
