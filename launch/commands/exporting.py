"""Commands that take a finished model out of here."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from launch.runs.model_names import HELP, model_folder
from launch.terminal.console import console


def export(
    model: Annotated[Path, typer.Argument(help=HELP)],
    to: Annotated[
        Literal["onnx", "torchscript", "safetensors"],
        typer.Option(help="safetensors: the embedder's weights alone."),
    ],
    out: Annotated[Path, typer.Option(help="File to write: .onnx, .pt or .safetensors.")],
    classes: Annotated[
        bool,
        typer.Option("--classes", help="With the classifier and its decision: scores, too."),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights of 8 bits, for CPUs; needs --on.")
    ] = False,
    on: Annotated[
        str | None,
        typer.Option(help="Compare both on a configuration's (.yaml) or dataset's test images."),
    ] = None,
) -> None:
    """Write a model as one file for a service: pixels from 0 to 255 in, vectors out.

    It is compared with the model's own embedder first, and not written if it differs.
    """
    from launch.models.export import Wanted, run_export
    from trainer.model import Model

    wanted = Wanted(to=to, out=out, classes=classes, int8=int8, test=on)
    run_export(Model.open(model_folder(model)), wanted, console)


def card(
    model: Annotated[Path, typer.Argument(help=HELP)],
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    license_: Annotated[
        str, typer.Option("--license", help="Its licence, as the hub spells it: apache-2.0.")
    ] = "unknown",
    classes: Annotated[
        bool, typer.Option("--classes", help="With the classifier; this publishes names.")
    ] = False,
) -> None:
    """Write a folder for the Hugging Face hub: a model's card, and the model as ONNX and weights.

    Nothing is uploaded. The run's results, settings and fingerprints go into the card; names of
    identities and hosts do not.
    """
    from launch.models.card import run_card
    from trainer.model import Model

    run_card(Model.open(model_folder(model)), out, license_, classes, console)
