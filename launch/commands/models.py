"""Commands on finished models and their vectors."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from data_shards.settings import InputError, parse_size
from launch.exits import WITHHELD
from launch.runs.model_names import HELP, model_folder, named
from launch.terminal.console import Terminal, console, say_json

ImageSize = Annotated[
    str | None,
    typer.Option(help="HxW to resize images to; default: as the model was trained."),
]
Actors = Annotated[int | None, typer.Option(min=1, help="Processes; default: one a core.")]
Address = Annotated[str | None, typer.Option(help="Of a Ray cluster; default: this machine.")]


def adopt(
    file: Annotated[
        Path,
        typer.Argument(help=".onnx or .safetensors; with --trust TorchScript (.pt, .ts) or .pt2."),
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
        str | None,
        typer.Option(
            help="Of .safetensors: a torchvision classifier's name. Of these and of .onnx: a "
            "network that can be trained on, such as iresnet50 (see embedder.architecture)."
        ),
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
    gallery: Annotated[
        Path | None,
        typer.Option(help="A folder of its vectors: their means by identity are its classifier."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            help="Shards of images it is for: to be trained on, a network whose batch "
            "normalisation was folded has its statistics measured."
        ),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Run the program in FILE, once, to convert it to ONNX."),
    ] = False,
    margin: Annotated[
        str, typer.Option(help="Its loss, such as kind=cosface,scale=64,margin=0.4.")
    ] = "kind=norm_softmax,scale=32",
) -> None:
    """Register an embedder that was not trained here, with or without its classifier.

    TorchScript and torch.export files are programs: --trust only what you would run.
    """
    from launch.models.adopt import Outside, run_adopt

    given = Outside(
        file=file,
        architecture=architecture,
        layer=layer,
        classifier=classifier,
        names=names,
        gallery=gallery,
        images=images,
    )
    run_adopt(
        given=given,
        out=out,
        size=size,
        scale=(mean, std),
        unit=unit,
        bgr=bgr,
        margin=margin,
        console=console,
        trust=trust,
    )


def embed(
    model: Annotated[Path, typer.Argument(help=HELP)],
    shards: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    out: Annotated[
        str,
        typer.Option(
            help="Folder (a gallery), .npy, .safetensors, .parquet, .faiss, or a database: "
            "postgresql://USER@HOST/DATABASE#TABLE, qdrant+http://HOST:6333/COLLECTION."
        ),
    ],
    features: Annotated[
        str | None,
        typer.Option(help="Write MegaFace's feature files, named IMAGE + this: _ours.bin."),
    ] = None,
    size: ImageSize = None,
    actors: Actors = None,
    address: Address = None,
) -> None:
    """Embed every image of a dataset; given again after a kill, it goes on."""
    from data_shards.storage.features import file_ending
    from launch.models.embed import run_embed

    opened, images, spread = _opened(model, shards, size, actors, address)
    ending = None if features is None else file_ending(features)
    run_embed(model=opened, images=images, out=out, spread=spread, console=console, features=ending)


def backfill(
    vectors: Annotated[
        str, typer.Argument(help="Folder, or URL of a database, that `perennial embed` wrote to.")
    ],
    model: Annotated[Path, typer.Option(help=f"To upgrade the vectors to. {HELP}")],
    shards: Annotated[str, typer.Option(help="Folder or URL of the dataset they were made of.")],
    budget: Annotated[int, typer.Option(min=1, help="Images to embed now.")],
    order: Annotated[
        Literal["isolated", "random"],
        typer.Option(help="isolated: identities first that are farthest from everybody else."),
    ] = "isolated",
    size: ImageSize = None,
    actors: Actors = None,
    address: Address = None,
) -> None:
    """Upgrade stored vectors to a new model within a budget; call it until nothing is left."""
    from launch.models.backfill import run_backfill

    opened, images, spread = _opened(model, shards, size, actors, address)
    run_backfill(
        where=vectors,
        images=images,
        model=opened,
        budget=budget,
        order=order,
        spread=spread,
        console=console,
    )


def evaluate(
    vectors: Annotated[
        Path, typer.Argument(help=f"{HELP} With --features: a folder of feature files.")
    ],
    on: Annotated[str, typer.Option(help="Folder or URL of the test set's shards.")],
    protocol: Annotated[
        Literal["verification", "identification", "templates", "retrieval"],
        typer.Option(help="See docs/protocols.md."),
    ],
    distractors: Annotated[
        str | None, typer.Option(help="Folder or URL of shards, for identification.")
    ] = None,
    mirror: Annotated[
        bool | None, typer.Option(help="Add the mirror image's embedding; default: verification.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Read vectors from MegaFace's feature files, named IMAGE + this."),
    ] = None,
    distractor_features: Annotated[
        Path | None, typer.Option(help="Folder of the distractors'; default: the same.")
    ] = None,
    size: ImageSize = None,
    actors: Actors = None,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON to this file, too.")] = None,
) -> None:
    """Put one model, or vectors from elsewhere, to a test set that need not be part of a run."""
    from data_shards.storage.features import file_ending
    from launch.config.cluster import ClusterSettings
    from launch.models.evaluate import FeatureFiles, results_table, run_evaluate, settings_of_test
    from trainer.model import Model

    shown = Terminal(stderr=True, highlight=False) if as_json else console
    test = settings_of_test(dataset=on, protocol=protocol, distractors=distractors, mirror=mirror)
    given: Model | FeatureFiles
    if features is None:
        if distractor_features is not None:
            raise InputError("--distractor-features needs --features: how their files' names end")
        given = Model.open(model_folder(vectors))
    else:
        if mirror is not None or size is not None:
            raise InputError("--mirror and --size are for images: feature files are as they are")
        folders = {"dataset": vectors, "distractors": distractor_features or vectors}
        given = FeatureFiles(folders, file_ending(features), shown)
    resized = parse_size(size) if size else None
    actors_ = ClusterSettings(workers=0, actors=actors, address=address)
    found = run_evaluate(
        vectors=given, settings=test, size=resized, actors=actors_, out=out, console=shown
    )
    if as_json:
        say_json(found)
    else:
        console.print(results_table(Path(on).name, found))


def classify(
    model: Annotated[Path, typer.Argument(help=HELP)],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each image.")
    ] = False,
) -> None:
    """Say which class images are of: the five likeliest ones, with their probabilities.

    The decision beside the model decides; without one, the largest logit. Where nearest means
    decide, their cosine similarities are told instead. Exit status 2: some images are damaged;
    each is named, and the others are classified.
    """
    from launch.inference.pictures import images_at
    from launch.models.classify import Classifier, classes_table
    from launch.terminal.progress import progress
    from trainer.model import Model

    shown = Terminal(stderr=True, highlight=False)
    found = images_at(images)
    classifier = Classifier(Model.open(model_folder(model)))
    done = refused = 0
    with progress(shown, "classifying", len(found)) as hear:
        for batch in classifier(found):
            for one in batch:
                if one.refused:
                    shown.print(f"! {one.image}: {one.refused}", soft_wrap=True)
                if as_json:
                    say_json(one.values(), indent=None)
            if not as_json and any(one.classes for one in batch):
                console.print(classes_table(batch))
            done += len(batch)
            refused += sum(bool(one.refused) for one in batch)
            hear(done)
    if refused:
        raise InputError(f"{refused:,} of {done:,} files are not classified: see the lines above")


def inspect(
    location: Annotated[
        str,
        typer.Argument(
            help="Checkpoint, model, decision, exemplars, folder of checkpoints, URL, or "
            "RUN:METHOD[:SEED[:STEP]]."
        ),
    ],
) -> None:
    """Say what a checkpoint, model, decision or memory of exemplars holds, and compare every file
    with its sha256."""
    from launch.commands.inspection import inspection_tables, look_at

    found, more = look_at(str(named(location) or location))
    for table in (*inspection_tables(found), *more):
        console.print(table)
    if found.damaged:
        raise InputError(f"{found.folder}: damaged or missing: {', '.join(found.damaged)}")


def compat(
    new: Annotated[
        Path, typer.Argument(help="The new model, it embeds the queries: folder or RUN:METHOD.")
    ],
    old: Annotated[
        Path,
        typer.Option(
            "--with", help="The old model, it embedded the gallery: folder or RUN:METHOD."
        ),
    ],
    benchmark: Annotated[
        str, typer.Option("--on", help="A configuration (.yaml), or folder or URL of a test set.")
    ],
    paragon: Annotated[
        Path | None, typer.Option(help="The best model without constraint: folder or RUN:METHOD.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(help="Operating points: top1, map, tar@RATE, tpir@RATE; may be repeated."),
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="That the criterion holds, and of the intervals.")
    ] = None,
    size: ImageSize = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON to this file, too.")] = None,
) -> None:
    """Say whether NEW's queries may meet a gallery that the old model embedded, and what it gains.

    Exit status 0: the criterion holds at every operating point; 3: it does not; 2: bad input.
    """
    from data_shards.files import write_json
    from launch.models.compare import compatibility
    from monitoring.compatibility import comparison_tables

    resized = parse_size(size) if size else None
    given = {"at": tuple(at or ()), "confidence": confidence}
    changes = {key: value for key, value in given.items() if value}
    found = compatibility(new, old, benchmark, paragon, changes, resized, console)
    if out is not None:
        write_json(out, found)
    if as_json:
        say_json(found)
    else:
        for part in comparison_tables(found):
            console.print(part)
    if not found["holds"]:
        raise typer.Exit(WITHHELD)


def _opened(
    model: Path, shards: str, size: str | None, actors: int | None, address: str | None
) -> tuple[Any, Any, Any]:
    """The model, the images to embed, and the function that distributes the work.

    Raises InputError.
    """
    from launch.config.cluster import ClusterSettings
    from launch.models.embed import Images, with_actors
    from trainer.model import Model

    opened = Model.open(model_folder(model))
    images = Images.open(shards, parse_size(size) if size else None, opened)
    settings = ClusterSettings(workers=0, actors=actors, address=address)
    return opened, images, with_actors(settings, console)
