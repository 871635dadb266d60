"""The commands `perennial shards benchmark ...`: write a paper's benchmark as a file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from data_shards.settings import InputError
from launch.terminal.console import console

if TYPE_CHECKING:  # the command line starts without pyarrow
    from data_shards.splits.benchmark_file import BenchmarkFile, Placed
    from data_shards.storage.dataset import ShardDataset

benchmarks = typer.Typer(
    help="Write a benchmark file: which identity is in which learning step, what is tested.",
    no_args_is_help=True,
)


Dataset = Annotated[str, typer.Argument(help="Folder or URL of the dataset.")]
Out = Annotated[Path, typer.Option(help="File to write, for the key benchmark.file.")]
Steps = Annotated[int, typer.Option(min=1, help="Learning steps; the paper's are 5 and 10.")]
Seed = Annotated[int, typer.Option(help="Decides who is in which step.")]


@benchmarks.command("crl-face")
def crl_face(
    dataset: Dataset,
    out: Out,
    steps: Steps = 5,
    seed: Seed = 0,
    seen: Annotated[
        int, typer.Option(min=0, help="Identities of step 0 with one image held out.")
    ] = 500,
) -> None:
    """All identities, split randomly and equally; tested on LFW and MegaFace (CRL paper)."""
    from data_shards.splits import published_benchmarks

    _write(dataset, out, lambda opened: published_benchmarks.crl_face(opened, steps, seed, seen))


@benchmarks.command("crl-person")
def crl_person(
    dataset: Dataset,
    out: Out,
    steps: Steps = 5,
    seed: Seed = 0,
    split: Annotated[
        Path | None, typer.Option(help="split_5_step.txt or its sibling, as distributed.")
    ] = None,
) -> None:
    """Merged re-id sets: training identities by step, and the paper's reduced test set."""
    from data_shards.sources.crl_person import read_split
    from data_shards.splits import published_benchmarks

    given = None if split is None else read_split(split)
    _write(dataset, out, lambda opened: published_benchmarks.crl_person(opened, steps, seed, given))


@benchmarks.command("bct-face")
def bct_face(
    dataset: Dataset,
    out: Out,
    percents: Annotated[
        str, typer.Option(help="Shares of the identities that the models see, ascending.")
    ] = "25,50,100",
    seed: Seed = 0,
) -> None:
    """Growing subsets of the identities: each step brings those that its subset adds."""
    from data_shards.splits import published_benchmarks

    try:
        shares = [float(part) for part in percents.split(",")]
    except ValueError as error:
        raise InputError(f"--percents {percents!r} is no list of numbers, as 25,50,100") from error
    _write(dataset, out, lambda opened: published_benchmarks.bct_face(opened, shares, seed))


@benchmarks.command("class-incremental")
def class_incremental(
    dataset: Dataset,
    out: Out,
    tasks: Annotated[
        int, typer.Option(min=1, help="Tasks after the first half of the classes.")
    ] = 5,
    equal: Annotated[
        bool, typer.Option("--equal", help="No half first: all classes in so many equal tasks.")
    ] = False,
) -> None:
    """Half of the classes first, then the rest in equal tasks, in the customary order."""
    from data_shards.splits import published_benchmarks

    _write(
        dataset, out, lambda opened: published_benchmarks.class_incremental(opened, tasks, equal)
    )


def _write(dataset: str, out: Path, draw: "Callable[[ShardDataset], BenchmarkFile]") -> None:
    from data_shards.splits.benchmark_file import place, write_benchmark
    from data_shards.storage.dataset import ShardDataset

    opened = ShardDataset.open(dataset)
    file = draw(opened)
    placed = place(file, out, opened)
    write_benchmark(file, out)
    console.print(_summary(placed, opened, out))


def _summary(placed: "Placed", dataset: "ShardDataset", out: Path) -> Table:
    table = Table("", "identities", "images", title=str(out), title_justify="left")
    rows = placed.row[dataset.identity[placed.trained]]
    first = 0
    for step, last in enumerate(placed.rows):
        images = int(((rows >= first) & (rows < last)).sum())
        table.add_row(f"step {step}", f"{last - first:,}", f"{images:,}")
        first = last
    for part in ("query", "gallery", "seen", "classified"):
        samples = getattr(placed, part)
        if len(samples):
            people = len(set(dataset.identity[samples].tolist()))
            table.add_row(part, f"{people:,}", f"{len(samples):,}")
    return table


def merge(
    datasets: Annotated[list[str], typer.Argument(help="Folders or URLs of datasets.")],
    out: Annotated[
        str, typer.Option(help="Folder or bucket's URL to write; must hold no other dataset.")
    ],
) -> None:
    """Make one dataset of several, image for image; given again after a kill, it goes on."""
    from data_shards.storage.dataset import ShardDataset
    from data_shards.writing.destination import destination_at
    from data_shards.writing.merging import merge_datasets

    place = destination_at(out)
    manifest = merge_datasets([ShardDataset.open(folder) for folder in datasets], place)
    place.leave()
    console.print(
        f"✓ {manifest['samples']:,} images of {manifest['identities']:,} identities in {out}"
    )


def split(
    dataset: Dataset,
    out: Annotated[str, typer.Option(help="Folder or URL that train and test are written in.")],
    test: Annotated[
        float, typer.Option(help="Share of the identities to test on; nobody is in both parts.")
    ] = 0.2,
    pairs: Annotated[
        int, typer.Option(min=1, help="Pairs to verify, half of one identity.")
    ] = 6000,
    queries: Annotated[
        Literal["cameras", "images"], typer.Option(help="See benchmark.queries.")
    ] = "cameras",
    seed: Annotated[int, typer.Option(help="Decides who is tested on.")] = 0,
) -> None:
    """Make two datasets of one: OUT/train, and OUT/test with queries, gallery and pairs."""
    from data_shards.splits.benchmark_settings import BenchmarkSettings
    from data_shards.splits.splitting import split_dataset
    from data_shards.storage.dataset import ShardDataset
    from data_shards.writing.destination import destination_at

    if not 0 < test < 1:
        raise InputError(f"--test {test:g} is no share: give one between 0 and 1, such as 0.2")
    opened = ShardDataset.open(dataset)
    wanted = max(1, round(test * opened.manifest["identities"]))
    settings = BenchmarkSettings(
        steps=1, test_identities=wanted, queries=queries, pairs=pairs, seen_identities=0, seed=seed
    )
    parts = {name: destination_at(f"{out.rstrip('/')}/{name}") for name in ("train", "test")}
    made = split_dataset(opened, parts["train"], parts["test"], settings)
    for place, manifest in zip(parts.values(), made, strict=True):
        console.print(
            f"✓ {manifest['samples']:,} images of {manifest['identities']:,} identities "
            f"in {place.name}"
        )
    left = len(opened) - sum(manifest["samples"] for manifest in made)
    if left:
        console.print(
            f"! {left:,} images of tested identities have a role of their own and are "
            "in neither part"
        )
