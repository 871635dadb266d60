"""Splits a dataset into a training and a test dataset that share no identity."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_shards.sources import ROLES, Refusal, SourceImage
from data_shards.splits.benchmark import Benchmark, build_benchmark
from data_shards.splits.benchmark_settings import BenchmarkSettings
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.destination import Destination
from data_shards.writing.importing import finished
from data_shards.writing.merging import images_of, refuse_tables
from data_shards.writing.writer import write_dataset

Ids = NDArray[np.int64]


def split_dataset(
    dataset: ShardDataset, train: Destination, test: Destination, settings: BenchmarkSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes the two parts that `settings` draws, and returns their manifests.

    The test part holds the tested identities, with roles query and gallery and a table ``pairs``,
    the training part all others. A second call resumes an interrupted split. Raises InputError as
    `build_benchmark` does, and when the dataset has tables, which would be lost.
    """
    refuse_tables(dataset)
    drawn = build_benchmark(dataset, settings)
    role = dataset.role.astype(np.int64)
    for name in ("query", "gallery"):
        role[getattr(drawn, name)] = ROLES.index(name)
    tested = np.union1d(drawn.query, drawn.gallery)
    others = np.flatnonzero(~np.isin(dataset.identity, dataset.identity[tested]))
    written = []
    for part, place, samples in (("train", train, others), ("test", test, tested)):
        of = {"of": dataset.fingerprint, "part": part, **settings.model_dump(mode="json")}
        tables = {"pairs": _pairs(dataset, drawn)} if part == "test" else {}
        if not finished(place, {"split": of}):
            write_dataset(
                partial(_from, dataset, samples, role),
                place,
                {"split": of},
                tables=tables,
            )
        place.leave()
        written.append(ShardDataset.open(place.name).manifest)
    return written[0], written[1]


def _from(
    dataset: ShardDataset, samples: Ids, role: Ids, start: int
) -> Iterator[SourceImage | Refusal]:
    return images_of(dataset, samples[start:].tolist(), role=role)


def _pairs(dataset: ShardDataset, drawn: Benchmark) -> pa.Table:
    left, right = (list(dataset.keys(side)) for side in drawn.pairs.T)
    return pa.table(
        {
            "left_key": pa.array(left, pa.string()),
            "right_key": pa.array(right, pa.string()),
            "same": pa.array(drawn.same, pa.bool_()),
            "fold": pa.array(drawn.folds, pa.int8()),
        }
    )
