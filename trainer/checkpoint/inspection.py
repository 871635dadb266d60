"""Describes the files of a saved folder, and checks them against their hashes."""

import re
from dataclasses import dataclass
from typing import Any

from data_shards.files import fingerprint
from data_shards.settings import InputError
from data_shards.storage.kinds import no_model
from trainer.checkpoint.checkpoints import POINTER
from trainer.checkpoint.format import CARD, DamagedError, Folder
from trainer.checkpoint.store import open_store
from untrusted.json_text import parse_json

_ROWS = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class File:
    """A file of a saved folder."""

    name: str
    bytes: int | None
    """None: it is missing."""
    damaged: bool
    content: str
    """A description; empty when damaged."""


@dataclass(frozen=True)
class Inspection:
    """The description of a saved folder."""

    folder: Folder
    facts: dict[str, str]
    """The card's facts; empty when it is damaged."""
    files: list[File]

    @property
    def damaged(self) -> list[str]:
        """The names of the damaged files."""
        return [file.name for file in self.files if file.damaged]


def inspect(location: str) -> Inspection:
    """Inspects a checkpoint, a model, a decision, or the newest of a folder of checkpoints.

    Verifies every file. Raises InputError where there is none, DamagedError when the manifest
    cannot be read.
    """
    folder = _resolve(location)
    files = [_file(folder, name) for name in folder.hashes]
    card: dict[str, Any] = {}
    if not any(file.damaged for file in files if file.name == CARD):
        with folder.intact(CARD):
            card = parse_json(folder.read(CARD))
    with folder.intact(CARD):
        return Inspection(folder, _facts(card, folder, files), files)


def _resolve(location: str) -> Folder:
    folder = Folder.at(location)
    if folder.complete() and CARD in folder.hashes:
        return folder
    store = open_store(location)
    saved = list(map(str, store.saved()))
    if not saved:
        raise InputError(no_model(location))
    named = (store.read(POINTER) or b"").decode(errors="replace").strip()
    return store.folder(named if named in saved else saved[-1])


def _file(folder: Folder, name: str) -> File:
    try:
        size: int | None = folder.size(name)
    except OSError:
        size = None
    damaged = folder.damaged(name)
    return File(name, size, damaged, "" if damaged else _content(folder, name))


def _content(folder: Folder, name: str) -> str:
    if not name.endswith(".safetensors"):
        return "card"
    try:
        tensors = folder.tensors(name.removesuffix(".safetensors"))
    except DamagedError:
        return "not safetensors"
    if (part := _ROWS.fullmatch(name)) is None:
        count = sum(tensor.numel() for tensor in tensors.values())
        return f"{len(tensors)} tensors, {count:,} numbers"
    if "ids" not in tensors:
        named = [key.rsplit(".", 2) for key in tensors if key.count(".") > 1]
        keys = sorted({key for _, key, _ in named})
        parameters = {parameter for parameter, _, _ in named}
        return f"{', '.join(keys) or 'nothing'} of {len(parameters)} parameters"
    ids, weight = tensors["ids"], tensors.get("weight")
    if weight is None or ids.dim() != 1:
        return f"{len(tensors)} tensors, no rows"
    state = [
        f"{key.removeprefix('state.')} ({str(tensor.dtype).removeprefix('torch.')})"
        for key, tensor in sorted(tensors.items())
        if key.startswith("state.")
    ]
    span = f"{int(ids[0])} to {int(ids[-1])}, " if len(ids) else ""
    held = f"{span}{' × '.join(map(str, weight.shape))}"
    return f"rows of {part[1]}: {held}" + (f"; state: {', '.join(state)}" if state else "")


def _facts(card: dict[str, Any], folder: Folder, files: list[File]) -> dict[str, str]:
    if not card:
        return {}
    kind = card.get("kind", "checkpoint" if "iteration" in card else "model")
    facts = {
        "kind": kind,
        "version": str(card["version"]),
        "bytes": f"{sum(file.bytes or 0 for file in files):,}",
        "fingerprint": fingerprint(folder.hashes),
    }
    if kind == "model":
        embedder = ", ".join(f"{key} {value}" for key, value in card["embedder"].items())
        facts |= {"identities": f"{card['rows']:,}", "embedder": embedder}
        if size := card.get("image_size"):  # not of an adopted one
            facts["images"] = " × ".join(map(str, size))
        return facts
    if kind == "decision":
        settings = ", ".join(f"{key} {value}" for key, value in card["settings"].items())
        facts["rule"] = f"{card['rule']}, {settings}" if settings else str(card["rule"])
        return facts | {"classes": f"{card['classes']:,}", "of model": str(card["model"])}
    facts |= {"iteration": f"{card['iteration']:,}"}
    if "world" in card:  # not in version 1
        facts |= {
            "samples seen": f"{card['samples']:,}",
            "saved by": f"{card['world']} ranks, ZeRO {card['zero']}",
            **{key.replace("_", " "): str(value) for key, value in card["origin"].items()},
            **{
                f"rows of {name}": f"{first} to {last - 1}"
                for name, (first, last) in card["blocks"].items()
            },
        }
    return facts
