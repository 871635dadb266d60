"""The previous model's outputs for each training image, cached by shard and view.

A `teacher` file holds, for n samples of one shard in one view (plain or flipped), either the K
old identities with the highest activations and those activations, or the old embeddings. Files
are safetensors and are read through memory maps, so a look-up by sample touches only its rows.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from data_shards.files import write_atomically
from data_shards.settings import InputError
from untrusted.files import open_regular
from untrusted.safetensors import read_header

VIEWS = ("plain", "flipped")
_DTYPES = {"F32": np.float32, "I64": np.int64, "I32": np.int32}


def teacher_file(folder: Path, shard: int, view: str) -> Path:
    """The path of the outputs for `shard` in `view`."""
    return folder / f"shard-{shard:05d}-{view}.safetensors"


def write_teacher_file(path: Path, tensors: Mapping[str, NDArray], model: str) -> None:
    """Writes a file's tensors: ``samples`` [n] int64 ascending and others [n, ...] beside it.

    `model` is the fingerprint of the model whose outputs they are.
    """
    write_atomically(path, save(dict(tensors), metadata={"version": "1", "model": model}))


def _mapped(path: Path, model: str) -> dict[str, NDArray]:
    """The tensors of a safetensors file as memory maps, all with the same first dimension.

    Raises InputError when it is missing, damaged or of another model.
    """
    try:
        with open_regular(path) as file:
            tensors, metadata = read_header(file, os.fstat(file.fileno()).st_size)
        if any(facts.dtype not in _DTYPES for facts in tensors.values()):
            raise ValueError("of another type")
        if len({facts.shape[:1] for facts in tensors.values()}) > 1:
            raise ValueError("of several lengths")
        if "samples" in tensors and (tensors["samples"].dtype, len(tensors["samples"].shape)) != (
            "I64",
            1,
        ):
            raise ValueError("samples are no numbers")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is missing or damaged ({error}): run again to make it anew"
        ) from error
    if (found := metadata.get("model")) != model:
        raise InputError(
            f"{path} comes from model {found}, not {model}: move it away and run again"
        )
    return {
        name: np.memmap(
            path,
            dtype=_DTYPES[facts.dtype],
            mode="r",
            offset=facts.start,
            shape=facts.shape,
        )
        for name, facts in tensors.items()
        if all(facts.shape)  # an empty tensor cannot be mapped
    }


class TeacherCache:
    """Looks up the previous model's outputs by sample and view."""

    def __init__(self, folder: Path, shards: int, views: tuple[str, ...], model: str) -> None:
        self._files = {}
        self._where: dict[str, tuple[NDArray, NDArray, NDArray]] = {}
        for view in views:
            paths = [teacher_file(folder, shard, view) for shard in range(shards)]
            files = [_mapped(path, model) for path in paths if path.exists()]
            files = [file for file in files if "samples" in file]
            counts = [len(file["samples"]) for file in files]
            samples = np.concatenate([np.empty(0, np.int64), *(f["samples"] for f in files)])
            order = np.argsort(samples, kind="stable")
            file_of = np.repeat(np.arange(len(files)), counts)[order]
            line = np.concatenate([np.empty(0, np.int64), *(np.arange(c) for c in counts)])[order]
            self._files[view] = files
            self._where[view] = (samples[order], file_of, line)

    def look_up(self, samples: NDArray, flipped: NDArray) -> dict[str, NDArray]:
        """The tensors for `samples` ([b]) as they were `flipped` ([b]), each [b, ...].

        Raises KeyError naming a sample that the files do not hold.
        """
        out: dict[str, NDArray] = {}
        for view, of_view in zip(VIEWS, (~flipped, flipped), strict=True):
            wanted = np.flatnonzero(of_view)
            if not len(wanted):
                continue
            known, file_of, line = self._where[view]
            at = np.minimum(np.searchsorted(known, samples[wanted]), max(len(known) - 1, 0))
            absent = known[at] != samples[wanted] if len(known) else np.ones(len(wanted), bool)
            if absent.any():
                raise KeyError(f"no {view} answer for sample {samples[wanted][absent][0]}")
            for number in np.unique(file_of[at]).tolist():
                here = file_of[at] == number
                for name, tensor in self._files[view][number].items():
                    if name == "samples":
                        continue
                    if name not in out:
                        out[name] = np.empty((len(samples), *tensor.shape[1:]), tensor.dtype)
                    out[name][wanted[here]] = tensor[line[at[here]]]
        return out
