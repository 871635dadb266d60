"""Maps of attention over learning steps: read from a run folder, and as the report has them."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from monitoring.analysis_schemas import ATTENTION
from monitoring.records import Damage, Record, read_value
from monitoring.run_folder import ANALYSES_FOLDER, ATTENTION_FOLDER

_MOST = 60
"""Chains in a page, at most."""


def attentions(folder: Path, damage: Damage | None = None) -> list[Record]:
    """The maps drawn of a run's models, by method and seed."""
    files = (folder / ANALYSES_FOLDER / ATTENTION_FOLDER).glob("*/seed-*.json")
    read = (
        read_value(file, ATTENTION, damage, within=folder)
        for file in sorted(islice(files, _MOST + 1))
    )
    found = [one for one in read if one is not None]
    return sorted(found, key=lambda one: (one["method"], one["seed"]))[:_MOST]


def attention_sheets(found: Sequence[Record], room: int, damage: Damage) -> list[dict[str, Any]]:
    """What the report's template shows of each: a row an image, a cell a step or none. As many as
    `room` bytes have place for."""
    sheets = []
    for one in found:
        every = [cell for image in one["images"] for cell in (image, *image["maps"])]
        room -= sum(len(cell["jpeg"]) for cell in every)
        if room < 0:
            damage[ATTENTION_FOLDER] = f"maps from {one['method']} on are left out: too large"
            break
        rows = []
        for image in one["images"]:
            maps = {cell["step"]: cell for cell in image["maps"]}
            rows.append({**image, "cells": [maps.get(step) for step in one["steps"]]})
        title = f"{one['method']}, seed {one['seed']}, {one['of']} class"
        sheets.append({"title": title, "steps": one["steps"], "rows": rows})
    return sheets
