"""What `perennial inspect` says of folders, and its tables."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from data_shards.files import sha256
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.kinds import kind_of
from monitoring.run_folder import decision_beside
from trainer.checkpoint import Folder
from trainer.checkpoint.inspection import File, Inspection, inspect

_NAMES = 5


def look_at(location: str) -> tuple[Inspection, list[Table]]:
    """What a folder or URL holds, and tables beside the usual ones.

    Verifies every file. Raises InputError where there is nothing that can be inspected.
    """
    if "://" not in location and kind_of(Path(location)) == "dataset":
        dataset = ShardDataset.open(location)
        if {"choose", "share"} <= dataset.manifest["source"].keys():  # as a memory is written
            return _exemplars(dataset), [_counts(dataset)]
    found = inspect(location)
    if found.facts.get("kind") == "model" and "://" not in location:
        beside = decision_beside(Path(location))
        if beside.exists():
            found.facts["decision"] = str(beside)
    return found, []


def _exemplars(dataset: ShardDataset) -> Inspection:
    source, files = dataset.manifest["source"], dataset.manifest["files"]
    facts = {
        "kind": "a memory of exemplars",
        "bytes": f"{sum(file['bytes'] for file in files.values()):,}",
        "fingerprint": dataset.fingerprint,
        "identities": f"{len(np.unique(dataset.identity)):,}",
        "images": f"{len(dataset):,}",
        "chosen by": str(source.get("choose")),
        "share of each": str(source.get("share")),
    }
    shards = dataset.manifest["shards"]
    described = [
        File(
            name=name,
            bytes=file["bytes"],
            damaged=sha256(dataset.folder / name) != file["sha256"],
            content="images, an identity's in the order of their choice" if name in shards else "",
        )
        for name, file in files.items()
    ]
    return Inspection(Folder.at(dataset.folder), facts, described)


def _counts(dataset: ShardDataset) -> Table:
    """How many identities have how many exemplars, and who they are."""
    table = Table("of each", "identities", "who")
    for column in table.columns[:2]:
        column.justify = "right"
    identities, images = np.unique(dataset.identity, return_counts=True)
    for count in np.unique(images)[::-1]:
        own = dataset.names[identities[images == count]].tolist()
        more = f" and {len(own) - _NAMES:,} more" if len(own) > _NAMES else ""
        table.add_row(f"{count:,}", f"{len(own):,}", ", ".join(map(str, own[:_NAMES])) + more)
    return table


def inspection_tables(found: Inspection) -> Iterator[Table]:
    """A table of the card's facts, and one of the files."""
    facts = Table(title=str(found.folder), title_justify="left", show_header=False)
    for key, value in found.facts.items():
        facts.add_row(key, value)
    if found.facts:
        yield facts
    files = Table("file", "bytes", "", "what is inside")
    files.columns[1].justify = "right"
    for file in found.files:
        size = "missing" if file.bytes is None else f"{file.bytes:,}"
        mark = Text("damaged", "red") if file.damaged else Text("✓", "green")
        files.add_row(file.name, size, mark, file.content)
    yield files
