"""Imports and describes datasets on a terminal: progress, refusals, contents."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from data_shards.images import ImageSettings
from data_shards.settings import InputError, Settings
from data_shards.sources import ROLES
from data_shards.sources.registry import SOURCES
from data_shards.storage.dataset import ShardDataset
from data_shards.writing.destination import Destination
from data_shards.writing.importing import description, finished, import_source
from data_shards.writing.writer import refusals, so_many_identities, vanished, whole_identities
from launch.terminal.progress import progress


def refusal_table(out: Path) -> Table | None:
    """A table of an import's refusals by reason; None if there are none."""
    counts = refusals(out)
    if not counts:
        return None
    table = Table("not taken because", "how many", title=str(out / "refused.jsonl"))
    table.title_justify = "left"
    for (reason, counted), count in counts.most_common():
        table.add_row(reason + ("" if counted else " (not counted)"), f"{count:,}")
    return table


def run_import(
    name: str,
    settings: Settings,
    place: Destination,
    image: ImageSettings,
    shard_samples: int,
    max_refused: float,
    processes: int,
    console: Console,
) -> None:
    """Imports a source into a `place` and prints the result. Raises InputError."""
    out = place.name
    if finished(place, description(name, settings, image)):
        place.leave()
        console.print(f"✓ {out} holds just this import already", soft_wrap=True)
        return
    total = SOURCES[name].total
    count = total(settings) if total else None
    try:
        with progress(console, f"importing into {out}", count) as hear:
            manifest = import_source(
                name=name,
                settings=settings,
                out=place,
                image=image,
                shard_samples=shard_samples,
                max_refused=max_refused,
                processes=processes,
                progress=hear,
            )
    except InputError:
        if (place.folder / "refused.jsonl").exists() and (table := refusal_table(place.folder)):
            console.print(table)
        raise
    if table := refusal_table(place.folder):
        console.print(table)
    dataset = ShardDataset.open(out)
    gone = vanished(place.folder, set(dataset.names.tolist()))
    nothing = f", nothing of {so_many_identities(len(gone))}" if gone else ""
    console.print(
        f"✓ {manifest['samples']:,} images of {manifest['identities']:,} identities in "
        f"{out}, {manifest['refused']:,} refused{nothing}"
    )
    place.leave()
    if gone:
        console.print(f"! nothing was taken of {whole_identities(gone)}")
    for line in unlike_published(dataset, SOURCES[name].published(settings)):
        console.print(f"! {line}")
    for line in parts_as_identities(dataset.names.tolist()):
        console.print(f"! {line}")
    singles = int((np.bincount(dataset.identity) == 1).sum())
    if singles:
        console.print(
            f"! identities with a single image: {singles:,}; there is nothing to find "
            "them by or to compare them with"
        )


def unlike_published(dataset: ShardDataset, published: Mapping[str, int]) -> list[str]:
    """A line for each number of images that differs from the published one (`Source.published`)."""
    counts = np.bincount(dataset.role, minlength=len(ROLES)).tolist()
    lines = []
    for roles, wanted in published.items():
        found = sum(counts[ROLES.index(role)] for role in roles.split("+"))
        if found != wanted:
            lines.append(f"{found:,} images with role {roles}, where {wanted:,} were published")
    return lines


_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}
_PARTS |= {"probe", "probes", "distractors", *ROLES}


def parts_as_identities(names: Sequence[str]) -> Iterator[str]:
    """A line if identities have names of a split's parts: their real folders then lie deeper."""
    parts = [name for name in names if name.rpartition("/")[2].lower() in _PARTS]
    if parts and set(parts) <= set(ROLES):
        yield f"identities are called {', '.join(parts)}: was roles=folders meant?"
    elif parts:
        yield (
            f"identities are called {', '.join(parts)}: if these are parts of a split, import each "
            f"by itself (PATH/{parts[0]}), or all with roles=folders once they are called "
            f"{', '.join(ROLES)}"
        )


def _histogram(counts: np.ndarray) -> str:
    """The number of identities by number of images, in classes whose width doubles."""
    edges = 2 ** np.arange(0, int(counts.max()).bit_length() + 1)
    numbers, _ = np.histogram(counts, edges)
    spans = [f"{a}" if b - a == 1 else f"{a}–{b - 1}" for a, b in pairwise(edges)]
    return ", ".join(f"{span}: {n:,}" for span, n in zip(spans, numbers, strict=True) if n)


def describe(dataset: ShardDataset) -> dict[str, Any]:
    """A description of a dataset, as the rows of a table."""
    manifest = dataset.manifest
    counts = np.bincount(dataset.identity, minlength=manifest["identities"])
    roles = np.bincount(dataset.role, minlength=len(ROLES)).tolist()
    cameras = np.bincount(dataset.camera, minlength=len(manifest["cameras"])).tolist()
    common = sorted(zip(cameras, manifest["cameras"], strict=True), key=lambda c: (-c[0], c[1]))
    more = f" and {len(common) - 8:,} more" if len(common) > 8 else ""
    return {
        "images": f"{manifest['samples']:,}",
        "roles": ", ".join(f"{r} {n:,}" for r, n in zip(ROLES, roles, strict=True) if n),
        "identities": f"{manifest['identities']:,}",
        "images per identity": _histogram(counts),
        "at least, median, mean, at most": (
            f"{counts.min()}, {np.median(counts):g}, {counts.mean():.1f}, {counts.max()}"
        ),
        "cameras": f"{len(cameras):,}",
        "images per camera": ", ".join(f"{name} {n:,}" for n, name in common[:8]) + more,
        "image size": "x".join(map(str, manifest["image_size"] or ["varies"])),
        "tables": ", ".join(
            f"{name} ({dataset.table(name).num_rows:,} rows)" for name in manifest.get("tables", [])
        )
        or "none",
        "shards": f"{len(manifest['shards']):,}",
        "bytes": f"{sum(facts['bytes'] for facts in manifest['files'].values()):,}",
        "refused at writing": f"{manifest['refused']:,}",
        "fingerprint": dataset.fingerprint,
    }
