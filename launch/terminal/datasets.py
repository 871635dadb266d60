"""Draws and verifies datasets, with progress."""

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, track

from data_shards.cores import cores
from data_shards.sources.glyphs import GlyphSettings, read_glyphs
from data_shards.storage.dataset import ShardDataset
from data_shards.storage.remote import CacheSettings
from data_shards.writing.destination import Destination
from data_shards.writing.writer import write_dataset
from untrusted.text import printable


def build_glyphs(settings: GlyphSettings, place: Destination, console: Console) -> None:
    """Draws the glyph dataset into a `place`, with progress."""
    processes = cores()
    images = track(
        read_glyphs(settings, processes),
        description=escape(f"drawing glyphs into {printable(place.name)}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    manifest = write_dataset(images, place, {"glyphs": settings.model_dump(mode="json")})
    place.leave()
    console.print(
        f"✓ {manifest['samples']:,} images of {manifest['identities']:,} identities by "
        f"{len(manifest['cameras'])} cameras in {place.name}",
        highlight=False,
    )


def verify_dataset(
    dataset: ShardDataset, console: Console, fetching: CacheSettings | None = None
) -> None:
    """Compares every file of a dataset with its hash, with progress; see `ShardDataset.verify`.

    Raises InputError.
    """
    total = sum(facts["bytes"] for facts in dataset.manifest["files"].values())
    columns = (
        TextColumn("verifying {task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(printable(dataset.location), total=total)
        dataset.verify(lambda done: bar.update(task, completed=done), fetching)
