"""The commands for models and galleries from outside: adopt, embed, backfill."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(highlight=False)


def adopt(
    file: Annotated[
        Path,
        typer.Argument(help="TorchScript (.pt, .ts), torch.export (.pt2), .onnx or .safetensors."),
    ],
    out: Annotated[Path, typer.Option(help="Model folder to write; must not exist.")],
    size: Annotated[str, typer.Option(help="HxW that the model expects, such as 112x112.")],
    mean: Annotated[
        str, typer.Option(help="Subtracted from pixels: one number, or one a channel: 123,117,104.")
    ],
    std: Annotated[str, typer.Option(help="What pixels are then divided by, likewise.")],
    unit: Annotated[
        bool, typer.Option("--unit", help="--mean and --std are for pixels from 0 to 1, not 255.")
    ] = False,
    bgr: Annotated[bool, typer.Option("--bgr", help="Channels are blue, green, red.")] = False,
    architecture: Annotated[
        str | None, typer.Option(help="Of .safetensors: a torchvision classifier's name.")
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            help="Its layer to leave out: what would enter it is the embedding. Default: the last "
            "linear one; none: keep all."
        ),
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Its classifier: .safetensors with `weight` [C, d].")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(help="The identities of these rows: text, one name a line.")
    ] = None,
    margin: Annotated[
        str, typer.Option(help="Its loss, such as kind=cosface,scale=64,margin=0.4.")
    ] = "kind=norm_softmax,scale=32",
) -> None:
    """Register an embedder that was not trained here, with or without its classifier.

    TorchScript and torch.export files are programs: adopt only what you would run.
    """
    from launch.adopting import Outside, run_adopt

    given = Outside(file, architecture, layer, classifier, names)
    run_adopt(given, out, size, (mean, std), unit, bgr, margin, console)
