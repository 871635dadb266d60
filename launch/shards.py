"""The commands `perennial shards ...`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

shards = typer.Typer(help="Build and check datasets of WebDataset shards.", no_args_is_help=True)
console = Console(highlight=False)


@shards.command("glyphs")
def shards_glyphs(
    out: Annotated[Path, typer.Option(help="Folder to write; must hold no dataset yet.")],
    fonts: Annotated[
        list[Path] | None, typer.Option(help="Folder with more fonts; may be repeated.")
    ] = None,
    identities: Annotated[int | None, typer.Option(help="Keep only this many.")] = None,
    min_fonts: Annotated[int, typer.Option(help="Leave out rarer characters.")] = 4,
    image_size: Annotated[int, typer.Option(help="Side of the images, pixels.")] = 32,
    variants: Annotated[int, typer.Option(help="Images of a character in a font.")] = 1,
    script: Annotated[
        Literal["any", "han"], typer.Option(help="han: Han characters alone.")
    ] = "any",
    seed: Annotated[int, typer.Option(help="Decides distortions and selection.")] = 0,
) -> None:
    """Draw the built-in dataset: characters are identities, fonts are cameras."""
    from data_shards.sources.glyphs import GlyphSettings
    from launch.run import build_glyphs

    settings = GlyphSettings(
        identities=identities,
        min_fonts=min_fonts,
        image_size=image_size,
        variants=variants,
        fonts=tuple(fonts or ()),
        script=script,
        seed=seed,
    )
    build_glyphs(settings, out, console)


@shards.command("verify")
def shards_verify(
    folder: Annotated[Path, typer.Argument(help="Folder of a dataset.")],
) -> None:
    """Compare every file of a dataset with its sha256."""
    from data_shards.dataset import ShardDataset
    from launch.run import verify_dataset

    dataset = ShardDataset.open(folder)
    verify_dataset(dataset, console)
    console.print(f"[green]✓[/] {folder}: {len(dataset.manifest['files'])} files are as written")


@shards.command("info")
def shards_info(
    folder: Annotated[Path, typer.Argument(help="Folder of a dataset.")],
) -> None:
    """Say what a dataset holds."""
    from data_shards.dataset import ShardDataset

    dataset = ShardDataset.open(folder)
    manifest = dataset.manifest
    table = Table(title=str(folder), title_justify="left", show_header=False)
    total = sum(facts["bytes"] for facts in manifest["files"].values())
    for key, value in {
        "images": f"{manifest['samples']:,}",
        "identities": f"{manifest['identities']:,}",
        "cameras": f"{len(manifest['cameras']):,}",
        "image size": " × ".join(map(str, manifest["image_size"] or ["varies"])),
        "shards": f"{len(manifest['shards']):,}",
        "bytes": f"{total:,}",
        "refused at writing": f"{manifest['refused']:,}",
        "fingerprint": dataset.fingerprint,
    }.items():
        table.add_row(key, value)
    console.print(table)
