"""One file of all vectors in the dataset's order, beside it their ids and a card."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.files import fsync, write_json
from data_shards.settings import InputError
from launch.models.sinks.interface import Made, OnDisk, join_ids
from launch.models.work_folder import check_same_plan


@dataclass(frozen=True)
class FlatFile(OnDisk, ABC):
    """A `Sink`: `out`, beside it ``.ids.tsv`` and the card, ``.json``."""

    def holds(self, plan: dict[str, Any]) -> bool:
        card = self.out.with_suffix(".json")
        if not self.out.exists():
            return False
        if not card.exists():
            raise InputError(
                f"{self.out} exists and was not written by this command: give another --out"
            )
        check_same_plan(card, plan, "give another --out")
        return True

    def publish(self, made: Made) -> None:
        """It gets its name last, so that a file that is there has its ids and its card."""
        card = {**made.plan, "dimension": made.dimension}
        joined = made.folder / f"joined{self.out.suffix}"
        self.write(made, joined, card)
        fsync(joined)
        join_ids(made.files.values(), made.folder / "ids.tsv")
        write_json(made.folder / "card.json", card)
        (made.folder / "ids.tsv").rename(self.out.with_suffix(".ids.tsv"))
        (made.folder / "card.json").rename(self.out.with_suffix(".json"))
        joined.rename(self.out)
        fsync(self.out.parent)

    @abstractmethod
    def write(self, made: Made, target: Path, card: dict[str, Any]) -> None:
        """Writes the file as `target`."""


class _Mapped(FlatFile):
    """A matrix [n, d] float32, filled through a memory map."""

    def write(self, made: Made, target: Path, card: dict[str, Any]) -> None:
        whole = self.create(target, (made.plan["rows"], card["dimension"]), card)
        done = 0
        for _, rows in made.parts():
            whole[done : done + len(rows.vectors)] = rows.vectors
            done += len(rows.vectors)
        whole.flush()

    @abstractmethod
    def create(self, path: Path, shape: tuple[int, int], card: dict[str, Any]) -> np.memmap:
        """The file's matrix, to be filled."""


class NumpyFile(_Mapped):
    """.npy"""

    def create(self, path: Path, shape: tuple[int, int], card: dict[str, Any]) -> np.memmap:
        return np.lib.format.open_memmap(path, "w+", np.float32, shape)


class SafetensorsFile(_Mapped):
    """.safetensors: `vectors`, with the card as metadata."""

    def create(self, path: Path, shape: tuple[int, int], card: dict[str, Any]) -> np.memmap:
        length = 4 * shape[0] * shape[1]
        facts = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, length]}
        metadata = {key: json.dumps(value).strip('"') for key, value in card.items()}
        header = json.dumps({"__metadata__": metadata, "vectors": facts}).encode()
        header += b" " * (-len(header) % 8)
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        return np.memmap(path, np.float32, "r+", 8 + len(header), shape)
