"""A Faiss index for exact search by cosine."""

from pathlib import Path
from typing import Any

import numpy as np

from launch.models.sinks.flat import FlatFile
from launch.models.sinks.interface import Made
from trainer.packages import package


class FaissIndex(FlatFile):
    """.faiss: an IndexFlatIP of vectors of unit length; what it finds are rows of the ids."""

    def holds(self, plan: dict[str, Any]) -> bool:
        package("faiss", f"--out {self.out}", extra="faiss")  # before anything is embedded
        return super().holds(plan)

    def write(self, made: Made, target: Path, card: dict[str, Any]) -> None:
        faiss = package("faiss", f"--out {self.out}", extra="faiss")
        index = faiss.IndexFlatIP(card["dimension"])
        for _, rows in made.parts():
            lengths = np.linalg.norm(rows.vectors, axis=1, keepdims=True)
            index.add(rows.vectors / np.maximum(lengths, 1e-12))
        faiss.write_index(index, str(target))
