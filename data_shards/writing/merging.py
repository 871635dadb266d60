"""Merges datasets: their samples one after the other, with unchanged image bytes."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.settings import InputError
from data_shards.sources import ROLES, Refusal, SourceImage
from data_shards.storage.dataset import SampleError, ShardDataset
from data_shards.writing.destination import Destination
from data_shards.writing.writer import write_dataset


def merge_datasets(
    datasets: Sequence[ShardDataset], out: Path | Destination, processes: int = 0
) -> dict[str, Any]:
    """Writes the samples of `datasets`, one dataset after the other, and returns the manifest.

    Images keep their keys; where two datasets share one, all keys are prefixed with their dataset's
    position. `processes` check the images beside this one.

    Raises InputError when two datasets share an identity's name, as it is unknown whether that is
    the same person, or when one has tables, which would lose what they refer to.
    """
    owner: dict[str, ShardDataset] = {}
    for dataset in datasets:
        refuse_tables(dataset)
        for name in dataset.names.tolist():
            if (other := owner.setdefault(name, dataset)) is not dataset:
                raise InputError(
                    f"{other.location} and {dataset.location} both have an identity {name!r}: "
                    "import one of them under another name"
                )
    every = np.concatenate([dataset.key_hashes for dataset in datasets])
    apart = len(np.unique(every)) == len(every)
    names = ["" if apart else f"{number}/" for number in range(len(datasets))]
    source = {"merged": [dataset.manifest["source"] for dataset in datasets]}
    return write_dataset(partial(merged_images, datasets, names), out, source, processes=processes)


def refuse_tables(dataset: ShardDataset) -> None:
    """Raises InputError when `dataset` has tables: they refer to its images as a whole."""
    if tables := dataset.manifest.get("tables"):
        raise InputError(
            f"{dataset.location} has tables ({', '.join(tables)}) that would be lost: test on it "
            "as it is"
        )


def merged_images(
    datasets: Sequence[ShardDataset], names: Sequence[str], start: int
) -> Iterator[SourceImage | Refusal]:
    """Yields the images of `datasets` from number `start` on, keys prefixed with `names`."""
    for dataset, name in zip(datasets, names, strict=True):
        if start < len(dataset):
            yield from images_of(dataset, range(start, len(dataset)), name)
        start = max(0, start - len(dataset))


def images_of(
    dataset: ShardDataset,
    samples: Iterable[int],
    name: str = "",
    role: NDArray[Any] | None = None,
) -> Iterator[SourceImage | Refusal]:
    """Yields the images of `samples`, with `name` in front of their keys.

    `role` ([n of the dataset], indices of `ROLES`) replaces the dataset's own roles.
    """
    cameras, roles = dataset.manifest["cameras"], dataset.role if role is None else role
    for sample in samples:
        identity = str(dataset.names[dataset.identity[sample]])
        try:
            (key,) = dataset.keys(np.array([sample]))
            image = dataset.image(sample)
        except SampleError as error:
            yield Refusal(f"{dataset.location} {sample}", identity, "damaged", str(error))
            continue
        camera = cameras[dataset.camera[sample]]
        yield SourceImage(
            image=image, identity=identity, camera=camera, key=name + key, role=ROLES[roles[sample]]
        )
