"""The command `perennial init`: from a folder of images to a configuration that runs."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from data_shards.files import write_atomically
from data_shards.settings import InputError
from launch.config.templates import template, templates
from launch.terminal.console import console

if TYPE_CHECKING:
    from data_shards.sources import Refusal, SourceImage
    from data_shards.storage.dataset import ShardDataset
    from launch.config.first import Facts

_LOOKED_AT = 200
"""Images that are looked at before all are imported."""


def init(
    images: Annotated[
        str | None,
        typer.Argument(help="Folder of images, other files to import, or a dataset's folder."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(help="key=value options of the format, see `perennial shards sources`."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The format; default: what it looks like.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Dataset to import into; default data/NAME.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Configuration to write; default NAME.yaml.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the configurations that come along.")
    ] = False,
    copied: Annotated[
        str | None, typer.Option("--from", help="Copy the one that comes along under this name.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a file that is there.")
    ] = False,
    max_refused: Annotated[
        float, typer.Option(min=0, max=1, help="Share of images that may be refused.")
    ] = 0.05,
) -> None:
    """Look at your images, import them, and write a configuration; goes on after a kill."""
    if listed:
        table = Table("name", "what it runs", title="perennial init --from NAME")
        table.title_justify = "left"
        for name, told in templates().items():
            table.add_row(name, told)
        console.print(table)
    elif copied is not None:
        target = out or Path(f"{copied}.yaml")
        _write(target, template(copied).read_text(encoding="utf-8"), replace)
        _next(target, target.stem)
    elif images is None:
        raise InputError(
            "say of which images: perennial init FOLDER; or --list what comes along, --from NAME"
        )
    else:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(images).resolve().name).strip("-.") or "images"
        target = out or Path(f"{name}.yaml")
        if target.exists() and not replace:
            raise _is_there(target)
        facts = _facts(images, options or [], source, data or f"data/{name}", max_refused)
        from launch.config.first import first_configuration

        _write(target, first_configuration(facts, target.stem), replace)
        _next(target, target.stem, try_it=True)


def _facts(
    images: str, options: list[str], source: str | None, data: str, max_refused: float
) -> "Facts":
    """What the images are, imported where they are no dataset yet. Raises InputError."""
    import numpy as np
    import torch

    from data_shards.sources import ROLES
    from data_shards.splits.benchmark_settings import BenchmarkSettings
    from data_shards.splits.cameras import knows_cameras
    from data_shards.splits.drawing import testable, with_role
    from data_shards.storage.dataset import ShardDataset
    from data_shards.storage.remote import is_remote
    from data_shards.writing.merging import images_of
    from launch.config.first import Facts

    if is_remote(images) or (Path(images) / "manifest.json").exists():
        dataset = ShardDataset.open(images)
    else:
        dataset = _imported(images, options, source, data, max_refused)
    some = np.linspace(0, len(dataset) - 1, min(len(dataset), _LOOKED_AT)).astype(np.int64)
    sizes = _look(images_of(dataset, some.tolist())).sizes
    height, width = sorted(sizes, key=lambda size: size[0] * size[1])[len(sizes) // 2]
    trained = with_role(dataset, ROLES[0])
    everyone = np.unique(dataset.identity[trained])
    able, _ = testable(dataset, everyone, BenchmarkSettings())
    facts = Facts(
        dataset=dataset.location,
        origin=images,
        images=int(trained.sum()),
        identities=len(everyone),
        testable=int(able[everyone].sum()),
        cameras=len(dataset.manifest["cameras"]) if knows_cameras(dataset) else 0,
        height=height,
        width=width,
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
    )
    for line in missing(facts):
        console.print(f"! {line}", soft_wrap=True)
    return facts


def missing(facts: "Facts") -> Iterable[str]:
    """What a dataset lacks, a line each."""
    if not facts.cameras:
        yield (
            "no image says which camera took it: take near-duplicates out, or figures come out "
            "too high; folders of cameras within identities' are read with cameras=true"
        )
    if few := facts.identities - facts.testable:
        needs = "images from two cameras" if facts.cameras else "two images"
        yield f"{few:,} identities cannot be tested on, which takes {needs} of each"


@dataclass
class _Look:
    """What some images are."""

    formats: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Height and width of each."""
    identities: dict[str, None] = field(default_factory=dict)
    cameras: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)


def _look(items: Iterable["SourceImage | Refusal"]) -> _Look:
    from data_shards.sources import Refusal
    from untrusted.pictures import BadPicture, open_picture

    found = _Look()
    for item in items:
        if isinstance(item, Refusal):
            found.refused[item.reason] += item.counts
            continue
        try:
            picture = open_picture(item.image)
        except BadPicture as bad:
            found.refused[bad.reason] += 1
            continue
        found.formats[picture.format or "?"] += 1
        found.sizes.append((picture.height, picture.width))
        found.identities[item.identity] = None
        found.cameras.add(item.camera)
    return found


def _imported(
    images: str, options: list[str], source: str | None, data: str, max_refused: float
) -> "ShardDataset":
    """The dataset that the files become, once some of them have been looked at."""
    from data_shards.cores import cores
    from data_shards.images import ImageSettings
    from data_shards.sources.detection import likely_source
    from data_shards.sources.registry import SOURCES
    from data_shards.storage.dataset import ShardDataset
    from data_shards.writing.destination import destination_at
    from data_shards.writing.importing import source_settings
    from launch.commands.importing import run_import

    if source is None:
        source, images, likely = likely_source(Path(images))
        given = {option.partition("=")[0] for option in options}
        options = [*options, *(o for o in likely if o.partition("=")[0] not in given)]
    settings = source_settings(source, images, options)
    read = " ".join([source, images, *options])
    console.print(f"read as: perennial shards import {read}", soft_wrap=True)
    look = _look(islice(SOURCES[source].read(settings), _LOOKED_AT))
    if not look.sizes:
        why = ", ".join(f"{reason} {n:,}" for reason, n in look.refused.items() if n) or "nothing"
        raise InputError(
            f"{images} holds no image that can be read as {source} ({why}): give the folder that "
            "holds a folder for each identity, or --source, see `perennial shards sources`"
        )
    _say(look)
    run_import(
        name=source,
        settings=settings,
        place=destination_at(data),
        image=ImageSettings(),
        shard_samples=4096,
        max_refused=max_refused,
        processes=cores(),
        console=console,
    )
    return ShardDataset.open(data)


def _say(look: _Look) -> None:
    formats = ", ".join(f"{name} {count:,}" for name, count in look.formats.most_common())
    small, large = min(look.sizes), max(look.sizes)
    sizes = f"{small[0]}x{small[1]}"
    sizes += f" to {large[0]}x{large[1]}" if small != large else ""
    names = list(look.identities)
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    console.print(
        f"the first {len(look.sizes):,} images: {formats}; {sizes} pixels; "
        f"{len(names):,} identities ({shown}), {len(look.cameras):,} cameras "
        f"({', '.join(sorted(look.cameras)[:3])})",
        soft_wrap=True,
    )


def _is_there(target: Path) -> InputError:
    return InputError(f"{target} is there already: give --replace, or another --out")


def _write(target: Path, text: str, replace: bool) -> None:
    """Writes a configuration, and says where it replaces one. Raises InputError."""
    there = target.exists()
    if there and not replace:
        raise _is_there(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, text.encode())
    console.print(f"✓ {target} {'replaced' if there else 'written'}", soft_wrap=True)


def _next(target: Path, name: str, try_it: bool = False) -> None:
    lines = [f"perennial plan {target}   # memory, messages, disk of each learning step"]
    if try_it:
        lines.append(
            f"perennial run {target} training.iterations=20 training.milestones=[] "
            f"--out runs/{name}-try   # a minute: does it run?"
        )
    lines += [
        f"perennial run {target}   # Ctrl-C, and the same command goes on",
        f"perennial status runs/{name}   # or, in a browser: perennial serve",
    ]
    console.print("next:")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)
