"""Recognises a folder of the wrong kind given to a command, and says what to give instead.

A command that finds no manifest cannot conclude that a folder is broken: far more often it is
intact and of another kind. So no message here advises to delete anything.
"""

from itertools import islice
from pathlib import Path

from monitoring.run_folder import is_run
from untrusted.files import read_bytes
from untrusted.json_text import parse_json
from untrusted.text import printable

_IMAGES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".jp2", ".heic", ".heif", ".avif"),
    )
)
_LOOKED_AT, _MANIFEST_BYTES = 2000, 1 << 26


def kind_of(folder: Path) -> str:
    """``missing``, ``file``, ``run``, ``dataset``, ``model``, ``checkpoint``, ``images``, ``empty``
    or ``other``."""
    if not folder.exists():
        return "missing"
    if not folder.is_dir():
        return "file"
    if is_run(folder):
        return "run"
    if (folder / "manifest.json").exists():
        return _by_manifest(folder / "manifest.json")
    if next(folder.iterdir(), None) is None:
        return "empty"
    entries = (entry for pattern in ("*", "*/*") for entry in folder.glob(pattern))
    seen = islice(entries, _LOOKED_AT)
    return "images" if any(entry.suffix.lower() in _IMAGES for entry in seen) else "other"


def _by_manifest(path: Path) -> str:
    try:
        manifest = parse_json(read_bytes(path, _MANIFEST_BYTES))
    except (OSError, ValueError):
        return "other"
    if not isinstance(manifest, dict):
        return "other"
    if "shards" in manifest:
        return "dataset"
    if "card.json" in manifest:
        return "model" if "names.safetensors" in manifest else "checkpoint"
    return "other"


def no_dataset(folder: Path) -> str:
    """Why a folder is no dataset, and what to give or do instead; one line."""
    kind, name = kind_of(folder), printable(str(folder))
    if kind == "images":
        return (
            f"{name} is a folder of images, not a dataset: import it with `perennial shards import "
            f"folder {name} --out DATASET`, and give DATASET"
        )
    if kind == "run":
        return f"{name} is a run, not a dataset: give the dataset that its run.yaml names"
    if kind in ("model", "checkpoint"):
        return f"{name} is a {kind}, not a dataset: give a folder of shards, such as data/glyphs"
    if kind == "file":
        return f"{name} is a file, not a dataset: give the folder that `perennial shards` wrote"
    if kind == "other":
        return (
            f"{name} holds no dataset (no manifest.json): if an import was stopped there, give the "
            "same command again; else give the folder that `perennial shards` wrote"
        )
    return (
        f"{name} holds no dataset (no manifest.json): build one with "
        f"`perennial shards glyphs --out {name}`, or `perennial shards import`"
    )


_MODEL = "RUN/chains/METHOD/seed-S/steps/T/model, or RUN:METHOD"


def no_model(location: str) -> str:
    """Why there is no model or checkpoint at a path, and what to give instead; one line."""
    folder, name = Path(location), printable(location)
    if "://" in location:
        return f"{name} holds no model or checkpoint (no manifest.json): give the URL of one"
    kind = kind_of(folder)
    if kind == "run":
        return f"{name} is a run, which holds many models: name one, such as {name}:METHOD"
    if kind == "dataset":
        return f"{name} is a dataset, not a model: give a model, such as {_MODEL}"
    if kind == "images":
        return f"{name} is a folder of images, not a model: give a model, such as {_MODEL}"
    if kind == "missing":
        return f"{name} does not exist: give a model, such as {_MODEL}"
    if kind == "file":
        return (
            f"{name} is a file: give a model's folder, such as {_MODEL}; `perennial adopt` makes "
            "one of a model trained elsewhere"
        )
    for above in ("", "*/", "steps/*/", "*/steps/*/"):
        if inner := next(folder.glob(f"{above}model/manifest.json"), None):
            inside = printable(str(inner.parent))
            return f"{name} is no model itself (no manifest.json), but holds one: give {inside}"
    return f"{name} is no model or checkpoint (no manifest.json): give one, such as {_MODEL}"
