"""The commands `perennial shards ...`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from data_shards.cores import cores
from data_shards.settings import InputError, parse_side, parse_size
from launch.commands.benchmark_files import Dataset, benchmarks, merge, split
from launch.terminal.console import console

shards = typer.Typer(help="Build and check datasets of WebDataset shards.", no_args_is_help=True)
shards.add_typer(benchmarks, name="benchmark")
shards.command("merge")(merge)
shards.command("split")(split)


@shards.command("glyphs")
def shards_glyphs(
    out: Annotated[
        str, typer.Option(help="Folder or bucket's URL to write; must hold no dataset yet.")
    ],
    fonts: Annotated[
        list[Path] | None, typer.Option(help="Folder with more fonts; may be repeated.")
    ] = None,
    identities: Annotated[int | None, typer.Option(help="Keep only this many.")] = None,
    min_fonts: Annotated[int, typer.Option(help="Leave out rarer characters.")] = 4,
    size: Annotated[
        str, typer.Option("--size", "--image-size", help="HxH of the images, pixels.")
    ] = "32x32",
    variants: Annotated[int, typer.Option(help="Images of a character in a font.")] = 1,
    script: Annotated[
        Literal["any", "han"], typer.Option(help="han: Han characters alone.")
    ] = "any",
    query_fonts: Annotated[
        int, typer.Option(help="Families of fonts for queries alone: nobody is trained on them.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Decides distortions and selection.")] = 0,
) -> None:
    """Draw the built-in dataset: characters are identities, fonts are cameras."""
    from data_shards.sources.glyphs import GlyphSettings
    from data_shards.writing.destination import destination_at
    from launch.terminal.datasets import build_glyphs

    settings = GlyphSettings(
        identities=identities,
        min_fonts=min_fonts,
        image_size=parse_side(size),
        variants=variants,
        fonts=tuple(fonts or ()),
        script=script,
        query_fonts=query_fonts,
        seed=seed,
    )
    build_glyphs(settings, destination_at(out), console)


@shards.command("sources")
def shards_sources() -> None:
    """List the formats that can be imported, and their options."""
    from data_shards.sources.registry import SOURCES
    from launch.config.load import fields

    table = Table("source", "option", "default", "meaning", title="sources", title_justify="left")
    for name, source in SOURCES.items():
        for key, default, meaning in fields(source.settings):
            table.add_row(name, key, str(default), meaning)
        table.add_section()
    console.print(table)


@shards.command("import")
def shards_import(
    source: Annotated[str, typer.Argument(help="A format of `perennial shards sources`.")],
    path: Annotated[str, typer.Argument(help="File, folder or pattern to import.")],
    out: Annotated[
        str, typer.Option(help="Folder or bucket's URL to write; must hold no other dataset.")
    ],
    options: Annotated[
        list[str] | None, typer.Argument(help="key=value options of the format, as name=ms1m.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HxW to scale all images to; default: as they are.")
    ] = None,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="JPEG quality of images encoded anew.")
    ] = 95,
    max_pixels: Annotated[
        int, typer.Option(min=1, max=178_000_000, help="Larger images are refused.")
    ] = 64_000_000,
    max_refused: Annotated[
        float, typer.Option(min=0, max=1, help="Share of images that may be refused.")
    ] = 0.0,
    shard_samples: Annotated[int, typer.Option(min=1, help="Images in a shard.")] = 4096,
    processes: Annotated[
        int | None, typer.Option(min=0, help="Processes that check images; default: one a core.")
    ] = None,
) -> None:
    """Turn original files into a dataset of shards; given again after a kill, it goes on.

    Images that cannot be taken are listed in refused.jsonl; more than --max-refused is an error
    with exit status 2.
    """
    from data_shards.images import ImageSettings
    from data_shards.writing.destination import destination_at
    from data_shards.writing.importing import source_settings
    from launch.commands.importing import run_import

    settings = source_settings(source, path, options or [])
    image = ImageSettings(
        size=parse_size(size) if size else None, quality=quality, max_pixels=max_pixels
    )
    count = cores() if processes is None else processes
    run_import(
        name=source,
        settings=settings,
        place=destination_at(out),
        image=image,
        shard_samples=shard_samples,
        max_refused=max_refused,
        processes=count,
        console=console,
    )


@shards.command("verify")
def shards_verify(
    dataset: Dataset,
) -> None:
    """Compare every file of a dataset with its sha256; remote ones are fetched, but not kept."""
    from data_shards.storage.dataset import ShardDataset
    from data_shards.storage.remote import CacheSettings
    from launch.terminal.datasets import verify_dataset

    opened = ShardDataset.open(dataset)
    verify_dataset(opened, console, CacheSettings())
    console.print(f"✓ {dataset}: {len(opened.manifest['files'])} files are as written")


@shards.command("info")
def shards_info(
    dataset: Dataset,
) -> None:
    """Say what a dataset holds: images, identities, cameras, roles, tables."""
    from data_shards.storage.dataset import ShardDataset
    from launch.commands.importing import describe

    table = Table(title=dataset, title_justify="left", show_header=False)
    for key, value in describe(ShardDataset.open(dataset)).items():
        table.add_row(key, value)
    console.print(table)


@shards.command("show")
def shards_show(
    dataset: Dataset,
    out: Annotated[Path, typer.Option(help="Picture to write, .png or .jpg.")],
    rows: Annotated[int, typer.Option(min=1, max=500, help="Identities shown.")] = 8,
    columns: Annotated[int, typer.Option(min=1, max=100, help="Images of each.")] = 10,
    seed: Annotated[int, typer.Option(help="Decides which identities.")] = 0,
) -> None:
    """Draw a contact sheet: identities as rows, their images with cameras beside them."""
    from data_shards.sheet import contact_sheet
    from data_shards.storage.dataset import SampleError, ShardDataset

    if out.suffix.lower() not in {".png", ".jpg"}:
        raise InputError(f"--out {out} must end in .png or .jpg")
    try:
        contact_sheet(ShardDataset.open(dataset), rows, columns, seed).save(out)
    except SampleError as error:
        raise InputError(f"{error}: restore the dataset") from error
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from error
    console.print(f"contact sheet: {out}")
