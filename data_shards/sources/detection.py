"""Which format files are probably of, by names alone: what a newcomer need not know."""

import os
from itertools import islice
from pathlib import Path

from data_shards.settings import InputError
from data_shards.sources import ROLES

_LOOKED_AT = 50
"""Identities' folders that are looked into."""


def likely_source(path: Path) -> tuple[str, str, list[str]]:
    """The source that reads `path`, by which path, and its options, as `shards import` takes them.

    What is nothing else is a folder of images. Raises InputError where there is nothing.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give a folder of images, or a dataset")
    if not path.is_dir():
        known = {".rec": "recordio", ".bin": "verification_bin"}
        return known.get(path.suffix, "webdataset"), str(path), []
    names = {entry.name for entry in os.scandir(path)}
    if "train.rec" in names:
        return "recordio", str(path), []
    if "bounding_box_train" in names:
        return ("dukemtmc" if "duke" in path.name.lower() else "market1501"), str(path), []
    if "list_train.txt" in names:
        return "msmt17", str(path), []
    if any(name.endswith(".tar") for name in names):
        return "webdataset", f"{path}/*.tar", []
    folders = sorted(n for n in names if (path / n).is_dir() and not n.startswith("."))
    if folders and "train" in folders and set(folders) <= set(ROLES):
        return "folder", str(path), ["roles=folders"]
    return "folder", str(path), ["cameras=true"] if _are_cameras(path, folders) else []


def _are_cameras(path: Path, folders: list[str]) -> bool:
    """Whether identities' folders hold nothing but folders, whose names come again and again."""
    found: list[str] = []
    for name in islice(folders, _LOOKED_AT):
        entries = [e for e in os.scandir(path / name) if not e.name.startswith(".")]
        if not entries or not all(entry.is_dir() for entry in entries):
            return False
        found += [entry.name for entry in entries]
    return len(found) >= 2 * len(set(found)) > 0
