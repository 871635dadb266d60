"""A model with its card, as a folder in the form of the Hugging Face hub: README.md and files."""

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from data_shards.files import write_atomically
from data_shards.settings import InputError
from launch.config.load import kept_config
from launch.models.export import Wanted, run_export
from launch.runs.code import commit
from monitoring.records import comparison, evaluation, ledger
from monitoring.results import compare as over_seeds
from monitoring.results import figures
from monitoring.run_folder import (
    COMPARISONS_FILE,
    EVALUATION_FILE,
    PHASE,
    is_run,
    run_of_model,
    step_of,
)
from trainer.exporting import Exported
from trainer.model import Model
from untrusted.text import printable
from untrusted.yaml_text import dump_yaml

_TASK = "image-feature-extraction"
_SCHEDULE = {"iterations", "epochs", "batch", "optimizer", "learning_rate", "milestones"}


@dataclass(frozen=True)
class Origin:
    """The run that a model comes from, and its place in it."""

    run: Path
    method: str
    seed: int
    step: int
    folder: Path
    """Of its learning step."""

    @classmethod
    def of(cls, model: Model) -> "Origin | None":
        """None for a model that lies in no run."""
        place = model.folder.resolve()  # a published one is a link
        run, where = run_of_model(place), step_of(place)
        if run is None or where is None or not is_run(run):
            return None
        return cls(run, *where, place.parent)


@dataclass(frozen=True)
class Metric:
    """A figure of a model."""

    key: str
    title: str
    value: float
    interval: str
    """Over seeds of the run, or that there is none."""


def run_card(model: Model, out: Path, license_: str, classes: bool, console: Console) -> None:
    """Writes the folder `out` with the card, the model as ONNX and, if it was trained here, its
    weights. Raises InputError."""
    if out.exists():
        raise InputError(f"--out {out} exists: give another folder")
    text = card(model, license_, classes)  # refuses what cannot be exported
    out.mkdir(parents=True)
    try:
        run_export(model, Wanted("onnx", out / "model.onnx", classes=classes), console)
        if not model.adopted:
            run_export(model, Wanted("safetensors", out / "model.safetensors"), console)
    except InputError:
        shutil.rmtree(out)
        raise
    write_atomically(out / "README.md", text.encode())
    console.print(f"✓ {out}: a card and what it describes; nothing was uploaded", soft_wrap=True)


def card(model: Model, license_: str, classes: bool) -> str:
    """The card's text: front matter in YAML, then Markdown."""
    origin = Origin.of(model)
    metrics = [] if origin is None else _metrics(origin)
    name = "perennial embedder" if origin is None else f"{origin.run.name} {origin.method}"
    front = {
        "license": license_,
        "library_name": "onnx",
        "pipeline_tag": _TASK,
        "tags": ["perennial", "metric-learning", "embeddings", "continual-learning"],
        **({"metrics": ["accuracy"]} if metrics else {}),
        "model-index": [{"name": name, "results": _results(origin, metrics)}] if metrics else None,
    }
    front = {key: value for key, value in front.items() if value is not None}
    sections = {
        "Model": _model(model, classes),
        "Data": _data(model, origin),
        "Method": _method(origin),
        "How to use": _use(Exported(model)),
        "Preprocessing": _preprocessing(model),
        "Metrics": _measured(metrics, origin),
        "Limits": _limits(model),
        "Provenance": _provenance(model, origin),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{dump_yaml(front)}---\n\n# {printable(name)}\n\n{body}\n"


def _metrics(origin: Origin) -> list[Metric]:
    if not (origin.folder / EVALUATION_FILE).exists():
        return []
    own = figures(evaluation(origin.folder / EVALUATION_FILE))
    of_seeds = next(
        row
        for row in over_seeds([origin.run])
        if (row["method"], row["step"]) == (origin.method, origin.step)
    )
    found = []
    for key, (title, value) in own.items():
        mean, half = 100 * of_seeds[key]["mean"], 100 * of_seeds[key]["half_width"]
        interval = "none: a single seed"
        if of_seeds["seeds"] > 1:
            interval = (
                f"{mean:.1f} [{mean - half:.1f}, {mean + half:.1f}], {of_seeds['seeds']} seeds"
            )
        found.append(Metric(key, title, value, interval))
    return found


def _results(origin: Origin | None, metrics: list[Metric]) -> list[dict[str, Any]]:
    """What the hub shows as the model's results."""
    if origin is None:
        return []
    dataset = _dataset(origin)
    return [
        {
            "task": {"type": _TASK},
            "dataset": {"name": dataset, "type": dataset},
            "metrics": [
                {"type": metric.key, "name": metric.title, "value": round(metric.value, 5)}
                for metric in metrics
            ],
        }
    ]


def _dataset(origin: Origin) -> str:
    """The dataset's name alone: where it lies is nobody else's business."""
    return printable(kept_config(origin.run).dataset.rstrip("/").rpartition("/")[2])


def _model(model: Model, classes: bool) -> str:
    settings = model.settings
    kind = settings.architecture or "a network of another program"
    files = ["`model.onnx`: pixels in, vectors out"]
    files += [] if model.adopted else ["`model.safetensors`: the embedder's weights"]
    files += ["`model.classes.txt`: the classes of its scores"] if classes else []
    return (
        f"An embedder ({kind}): an image to a vector of {settings.dimension} numbers, near to "
        "those of other images of the same identity, also of identities that it was not trained "
        "on. Vectors are not of unit length: compare them by their cosine.\n\n"
        + "\n".join(f"- {file}" for file in files)
    )


def _data(model: Model, origin: Origin | None) -> str:
    if origin is None:
        return "Not known here: the model lies in no run."
    return (
        f"{model.rows:,} identities of the dataset `{_dataset(origin)}`, learned in "
        f"{origin.step + 1} steps, in each of which only the newest were there (unless the method "
        "keeps some). The identities' names are not published."
        if origin.step
        else f"{model.rows:,} identities of the dataset `{_dataset(origin)}`."
    )


def _method(origin: Origin | None) -> str:
    if origin is None:
        return "Not known here: the model lies in no run."
    config = kept_config(origin.run)
    chosen = {
        "method": config.methods[origin.method].model_dump(mode="json", exclude_none=True),
        "embedder": config.embedder.model_dump(mode="json", exclude_none=True),
        "classifier": config.classifier.model_dump(mode="json", exclude_none=True),
        "training": config.training.model_dump(mode="json", include=_SCHEDULE, exclude_none=True),
    }
    return (
        f"`{printable(origin.method)}` of perennial, learning step {origin.step}, seed "
        f"{origin.seed}:\n\n"
        f"```yaml\n{dump_yaml(chosen)}```"
    )


def _use(program: Exported) -> str:
    height, width = program.size
    return f"""```python
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
image = Image.open("image.jpg").convert("RGB").resize(({width}, {height}), Image.BILINEAR)
pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None]
(vectors,) = session.run(["vectors"], {{"pixels": pixels}})
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # now a product is a cosine
```"""


def _preprocessing(model: Model) -> str:
    crop = "" if model.centre is None else f" Of each image the middle {model.centre:.1%} is shown."
    return (
        f"`{Exported(model).facts()['input']}`: scaling is part of the graph.{crop} Images of "
        "another size are resized bilinearly with antialiasing, and must be aligned and cropped as "
        "those that it was trained on."
    )


def _measured(metrics: list[Metric], origin: Origin | None) -> str:
    if not metrics or origin is None:
        return "None are stored with the model."
    lines = ["| metric | this model, % | mean over seeds [95 % interval] |", "|---|---|---|"]
    lines += [f"| {printable(m.title)} | {100 * m.value:.1f} | {m.interval} |" for m in metrics]
    lines.append(
        "\nIntervals are of the mean over trainings with other seeds at one split of identities, "
        "by Student's t; they say nothing of other data."
    )
    if (origin.folder / COMPARISONS_FILE).exists():
        lines += _compatible(comparison(origin.folder / COMPARISONS_FILE))
    return "\n".join(lines)


def _compatible(found: dict[str, Any]) -> list[str]:
    lines = [
        "\nIts queries among vectors that earlier steps' models stored:\n",
        "| vectors of step | at | old/old, % | new/old, % | gain [interval of identities] |",
        "|---|---|---|---|---|",
    ]
    for one in found["against"]:
        for point in one["points"]:
            gain = {key: 100 * value for key, value in point["gain"].items()}
            told = f"{gain['value']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"
            old, new = (100 * point[key] for key in ("old_old", "new_old"))
            lines.append(f"| {one['step']} | {point['point']} | {old:.1f} | {new:.1f} | {told} |")
    return lines


def _limits(model: Model) -> str:
    return (
        "It was measured on the test set above and on nothing else: not on other cameras, ages, "
        "regions or lighting, and not for fairness between groups of people. A cosine is no "
        "probability: choose a threshold on data of your own. Its vectors can be compared with "
        "those of another model only where that was tested."
    )


def _provenance(model: Model, origin: Origin | None) -> str:
    lines = [f"fingerprint: `{model.fingerprint}` (a hash of all of the model's files)"]
    if origin is not None:
        chain = f"{origin.method}/seed-{origin.seed}"
        lines.append(f"run: `{printable(origin.run.name)}`, chain `{printable(chain)}`")
        lines += _spent(origin)
    for name in ("perennial-id", "torch", "onnx", "onnxruntime", "numpy"):
        try:
            lines.append(f"exported with {name} {version(name)}")
        except PackageNotFoundError:
            continue
    lines.append(f"exported by the code of commit `{commit()}`")
    lines.append(f"exported on {platform.machine()}, Python {platform.python_version()}")
    return "\n".join(f"- {line}" for line in lines)


def _spent(origin: Origin) -> list[str]:
    """The class of machine, without its name, the time of the chain's phases until then, and the
    commits of the code that did them, in order."""
    chain = [
        line
        for line in ledger(origin.run)
        if (line["method"], line["seed"]) == (origin.method, origin.seed)
        and line["step"] <= origin.step
        and PHASE.fullmatch(line["phase"])
    ]
    if not chain:
        return []
    most = {kind: max(line.get(kind, 0) for line in chain) for kind in ("cpus", "gpus")}
    minutes = sum(line["finished"] - line["started"] for line in chain) / 60
    machine = f"at most {most['cpus']:g} CPU cores and {most['gpus']:g} GPUs at a time"
    spent = [f"trained and measured on {machine}, {minutes:,.1f} minutes"]
    commits = dict.fromkeys(f"`{line['commit']}`" for line in chain if "commit" in line)
    return [*spent, f"by the code of {', '.join(commits)}"] if commits else spent
