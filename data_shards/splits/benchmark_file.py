"""Benchmark files: the identities of each learning step and the test images, by name.

A file is JSON, one name a line, and uses the source's names of identities and images. So it means
the same to everybody who imports that source, and can be read, compared and published.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from data_shards.files import write_atomically
from data_shards.settings import InputError, Settings
from data_shards.sources import ROLES
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.keys import key_hash
from untrusted.files import read_bytes
from untrusted.json_text import parse_json

Ids = NDArray[np.int64]
Names = tuple[str, ...]
_BYTES = 1 << 30


class BenchmarkFile(Settings):
    """The content of a benchmark file."""

    version: Literal[1] = 1
    """The version of this layout."""
    benchmark: str
    """The command that made it, such as ``crl-face``."""
    drawn: dict[str, Any] = {}
    """The arguments it was drawn with, such as steps and seed."""
    query: Names = ()
    """Keys of the images that are searched for."""
    gallery: Names = ()
    """Keys of the images that are searched in."""
    seen: Names = ()
    """Keys of the images of step 0's identities that are held out, to measure forgetting on."""
    classified: Names = ()
    """Keys of the test images of learnt identities, for accuracy task by task."""
    steps: tuple[Names, ...]
    """The identities of each learning step, in the order of their classifier rows. A step trains
    on their images with role "train" that are not named above."""


@dataclass(frozen=True)
class Placed:
    """A benchmark file's identities and images located in a dataset. Samples are dataset rows."""

    row: Ids
    """[identities of the dataset] the classifier row of each, or -1."""
    rows: tuple[int, ...]
    """Classifier rows after each learning step."""
    trained: Ids
    """Samples that some step trains on."""
    query: Ids
    gallery: Ids
    seen: Ids
    classified: Ids


def write_benchmark(file: BenchmarkFile, path: Path) -> None:
    """Writes `file`; the same content gives the same bytes."""
    values = {key: value for key, value in file.model_dump(mode="json").items() if value}
    text = json.dumps(values, indent=1, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())


def read_benchmark(path: Path) -> BenchmarkFile:
    """Reads a benchmark file. Raises InputError when it is missing, damaged or repeats a name."""
    remedy = "make it with `perennial shards benchmark`"
    try:
        content = read_bytes(path, _BYTES)
        parse_json(content)  # refuses repeated keys and other encodings, which pydantic accepts
        file = BenchmarkFile.model_validate_json(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path} is no benchmark file ({where}: {first['msg']}): {remedy}") from (
            error
        )
    except ValueError as error:
        raise InputError(f"{path} is no benchmark file ({error}): {remedy}") from error
    if not file.steps or not all(file.steps):
        raise InputError(f"{path} has no learning step, or one without identities: {remedy}")
    _once(path, "identity", [name for step in file.steps for name in step])
    _once(path, "image", [*file.query, *file.gallery, *file.seen, *file.classified])
    return file


def _once(path: Path, what: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        (name, _), *_ = Counter(names).most_common(1)
        raise InputError(f"{path} names the {what} {name!r} more than once: take it out but once")


def place(file: BenchmarkFile, path: Path, dataset: ShardDataset) -> Placed:
    """Finds the identities and images of `file`, which was read from `path`, in `dataset`.

    Raises InputError when the dataset lacks any of them, or an identity is trained and tested.
    """
    learned = [name for step in file.steps for name in step]
    row = np.full(len(dataset.names), -1, dtype=np.int64)
    row[_identities(learned, path, dataset)] = np.arange(len(learned))
    parts = [file.query, file.gallery, file.seen, file.classified]
    found = _samples([key for part in parts for key in part], path, dataset)
    ends = np.cumsum([len(part) for part in parts])[:-1]
    query, gallery, seen, classified = (np.sort(part) for part in np.split(found, ends))
    tested = np.concatenate([query, gallery])
    if (both := row[dataset.identity[tested]] >= 0).any():
        name = dataset.names[dataset.identity[tested[both][0]]]
        raise InputError(f"{path} trains on identity {name!r} and tests on it, too: make it anew")
    trains = (row[dataset.identity] >= 0) & (dataset.role == ROLES.index("train"))
    trains[found] = False
    rows = tuple(np.cumsum([len(step) for step in file.steps]).tolist())
    return Placed(
        row=row,
        rows=rows,
        trained=np.flatnonzero(trains),
        query=query,
        gallery=gallery,
        seen=seen,
        classified=classified,
    )


def _identities(names: list[str], path: Path, dataset: ShardDataset) -> Ids:
    """[n] the ids of `names`."""
    known = pa.array(dataset.names, pa.string())
    ids = pc.index_in(pa.array(names, pa.string()), value_set=known).fill_null(-1).to_numpy()
    _all_found(found=ids, names=names, path=path, what="identities", dataset=dataset)
    return ids.astype(np.int64)


def _samples(keys: list[str], path: Path, dataset: ShardDataset) -> Ids:
    """[n] the samples of `keys`. Reads the dataset's keys only when there are any."""
    if not keys:
        return np.empty(0, dtype=np.int64)
    # the wanted keys are sorted, not the dataset's, which are many more
    wanted = np.fromiter(map(key_hash, keys), np.uint64, len(keys))
    order = np.argsort(wanted)
    held = dataset.key_hashes
    place = np.minimum(np.searchsorted(wanted[order], held), len(keys) - 1)
    hits = np.flatnonzero(wanted[order[place]] == held)
    samples = np.full(len(keys), -1, dtype=np.int64)
    samples[order[place[hits]]] = hits
    _all_found(found=samples, names=keys, path=path, what="images", dataset=dataset)
    return samples


def _all_found(
    found: NDArray[Any], names: list[str], path: Path, what: str, dataset: ShardDataset
) -> None:
    if count := int((found < 0).sum()):
        raise InputError(
            f"{dataset.location} lacks {count:,} of the {len(names):,} {what} of {path}, such as "
            f"{names[int(np.argmax(found < 0))]!r}: import the source that it was made from"
        )
