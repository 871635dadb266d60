"""The commands `perennial analyse ...`: what a finished run's models make of images."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from data_shards.settings import InputError
from launch.commands.arguments import RunFolder
from launch.commands.completion import methods
from launch.terminal.console import Terminal, console, say_json

analyse = typer.Typer(help="Look into the models of a run.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")]


@analyse.command("similarity")
def analyse_similarity(folder: RunFolder, as_json: AsJson = False) -> None:
    """Compare each step's model with all later ones, layer by layer, on its own test images.

    SVCCA: 100 % is the same up to a linear map. Given again after a kill, it goes on.
    """
    from launch.analyses.similarity import similarity
    from monitoring.analyses import similarities, similarity_tables

    similarity(folder, Terminal(stderr=True, highlight=False) if as_json else console)
    found = similarities(folder)
    if as_json:
        say_json(found)
        return
    for table in similarity_tables(found):
        console.print(table)
    _told(f"`perennial report {folder}` draws it over steps")


@analyse.command("features")
def analyse_features(
    folder: RunFolder,
    method: Annotated[
        str | None,
        typer.Option(help="Whose model; with --over-steps default: all.", autocompletion=methods),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="After which learning step; default: the last finished.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the lowest.")] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="A class by its name; may be repeated. Default: ten."),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="Training images instead of test images.")
    ] = False,
    over_steps: Annotated[
        bool, typer.Option("--over-steps", help="Of tested identities, after every step.")
    ] = False,
) -> None:
    """Lay out embeddings of some classes in the plane by t-SNE: of test images, of exemplars, and
    those that a generator draws; or those of tested identities, step after step."""
    from launch.analyses.features import features
    from launch.analyses.features_over_steps import features_over_steps

    if over_steps:
        if step is not None or training:
            raise InputError(
                "--over-steps is of test images at all steps: leave out --step and --training"
            )
        names = tuple(classes or ())
        files = features_over_steps(folder, console, method=method, seed=seed, identities=names)
        _told(f"features: {len(files)} files; `perennial report {folder}` draws them")
        return
    if method is None:
        raise InputError("say whose model it is, --method, or --over-steps for those of all")
    target = features(
        folder,
        console,
        method=method,
        seed=seed,
        step=step,
        classes=tuple(classes or ()),
        training=training,
    )
    _told(f"features: {target}; `perennial report {folder}` draws them")


@analyse.command("attention")
def analyse_attention(
    folder: RunFolder,
    method: Annotated[str, typer.Option(help="Whose models.", autocompletion=methods)],
    seed: Annotated[int | None, typer.Option(help="Default: the lowest.")] = None,
    images: Annotated[
        list[str] | None, typer.Option("--image", help="A test image's key; may be repeated.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="A class, one test image of it; may be repeated. Default: eight."
        ),
    ] = None,
    of: Annotated[
        Literal["true", "predicted"],
        typer.Option(help="For which class maps are: the image's own, or what it is taken for."),
    ] = "true",
) -> None:
    """Draw where each step's model looks in some test images: Grad-CAM by its last block."""
    from launch.analyses.attention import attention

    target = attention(
        folder,
        console,
        method=method,
        seed=seed,
        images=tuple(images or ()),
        classes=tuple(classes or ()),
        of=of,
    )
    _told(f"attention: {target}; `perennial report {folder}` draws it")


@analyse.command("confusion")
def analyse_confusion(
    folder: RunFolder,
    meta: Annotated[
        Path | None,
        typer.Option(help="Lines class,meta-class. Default: CIFAR-100's, or clusters of classes."),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(help="Clusters of class means; default: a fifth as many as classes."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="With --against: whose errors; may be repeated. Default: all others."),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The method that others are compared with, such as a host.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count errors after each step: within a meta-class confusion, across them forgetting."""
    from launch.analyses.confusion import confusion
    from monitoring.error_split import (
        by_method,
        difference_table,
        error_split,
        split_tables,
        told_differences,
    )

    if meta is not None and clusters is not None:
        raise InputError("--meta says which classes belong together: leave out --clusters")
    shown = Terminal(stderr=True, highlight=False) if as_json else console
    confusion(folder, shown, meta=meta, clusters=clusters)
    found = error_split(folder)
    assert found is not None, "it has just been written"
    chains, counted = found["chains"], by_method(found["chains"])
    for name in [*(method or ()), *([] if against is None else [against])]:
        if name not in counted:
            raise InputError(f"{folder} has no errors of {name!r}, only of: {', '.join(counted)}")
    if method and against is None:
        raise InputError("--method needs --against: say which method it is compared with")
    others = method or [name for name in counted if name != against]
    pairs = [] if against is None else [(name, against) for name in others]
    if as_json:
        compared = [one for pair in pairs for one in told_differences(chains, *pair)]
        say_json({"meta": found["meta"], "chains": chains, "differences": compared})
        return
    source, count = found["meta"]["source"], len(found["meta"]["groups"])
    _told(f"{count} meta-classes: {source}")
    for table in split_tables(chains):
        console.print(table)
    for pair in pairs:
        console.print(difference_table(chains, *pair))
    _told(f"`perennial report {folder}` draws it over steps")


@analyse.command("experts")
def analyse_experts(
    folder: RunFolder,
    method: Annotated[
        str, typer.Option(help="Whose experts, where they were kept.", autocompletion=methods)
    ],
    against: Annotated[str | None, typer.Option(help="Its host, to be compared with.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the lowest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Test each step's expert among its own classes, beside the models with and without it."""
    from launch.analyses.experts import experts, experts_table

    shown = Terminal(stderr=True, highlight=False) if as_json else console
    rows = experts(folder, shown, method, against, seed)
    if as_json:
        say_json(rows)
        return
    console.print(experts_table(method, rows))


@analyse.command("exemplars-alone")
def analyse_exemplars(
    folder: RunFolder,
    method: Annotated[str, typer.Option(help="Whose exemplars.", autocompletion=methods)],
    seed: Annotated[int | None, typer.Option(help="Default: the lowest.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train networks on each step's exemplars alone, as they were chosen and as they were learned,
    and test them."""
    from launch.analyses.exemplars import exemplars, exemplars_table

    shown = Terminal(stderr=True, highlight=False) if as_json else console
    rows = exemplars(folder, shown, method, seed)
    if as_json:
        say_json(rows)
        return
    console.print(exemplars_table(method, rows))


@analyse.command("memory")
def analyse_memory(folder: RunFolder, as_json: AsJson = False) -> None:
    """Say what each method keeps for its next step: exemplars, network, rows and all else."""
    from launch.analyses.memory import kept
    from monitoring.memory import memory_table
    from monitoring.records import Damage, told

    damage: Damage = {}
    rows = kept(folder, damage)
    if as_json:
        say_json([{"method": r["method"], "step": r["step"], **r["memory"]} for r in rows])
        return
    console.print(memory_table(rows))
    for line in told(damage):
        console.print(Text(line, "yellow"))


def _told(line: str) -> None:
    console.print(Text(line), soft_wrap=True)
