"""Several datasets as one: their samples one after the other, the bytes as they are."""

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

    Images keep their keys, or, where two datasets share one, get their dataset's position put
    before it. `processes` check the images beside this one.

    Raises InputError when two datasets share an identity's name, since nobody can tell whether it
    is the same person, or when one has tables, which would lose what they refer to.
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
    """Raises InputError when `dataset` has tables: they speak of all its images together."""
    if tables := dataset.manifest.get("tables"):
        raise InputError(
            f"{dataset.location} has tables ({', '.join(tables)}) that would be lost: test on it "
            "as it is"
        )


def merged_images(
    datasets: Sequence[ShardDataset], names: Sequence[str], start: int
) -> Iterator[SourceImage | Refusal]:
    """The images of `datasets` from number `start` on, with each dataset's name before its keys."""
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
    """The images of `samples`, with `name` before their keys; `role` ([n of the dataset], as
    numbers of `ROLES`) takes the place of the dataset's own."""
    cameras, roles = dataset.manifest["cameras"], dataset.role if role is None else role
    for sample in samples:
        identity = str(dataset.names[dataset.identity[sample]])
        try:
            (key,) = dataset.keys(np.array([sample]))
            image = bytes(dataset.image(sample))
        except SampleError as error:
            yield Refusal(f"{dataset.location} {sample}", identity, "damaged", str(error))
            continue
        camera = cameras[dataset.camera[sample]]
        yield SourceImage(
            image=image, identity=identity, camera=camera, key=name + key, role=ROLES[roles[sample]]
        )
