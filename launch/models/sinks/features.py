"""A folder of MegaFace's feature files, see `data_shards.storage.features`."""

import os
import shutil
from dataclasses import dataclass
from typing import Any

from data_shards.files import write_json
from data_shards.settings import InputError
from data_shards.storage.features import feature_name, write_feature
from launch.models.sinks.interface import Made, OnDisk
from launch.models.work_folder import check_same_plan

FEATURES = "features.json"
"""File with the plan that a folder of feature files was made by."""


@dataclass(frozen=True)
class FeatureFolder(OnDisk):
    """A `Sink`: a file for each image, in a tree as that of the images."""

    ending: str
    """What files' names append to the image's."""

    def _plan(self, plan: dict[str, Any]) -> dict[str, Any]:
        return {**plan, "features": self.ending}

    def holds(self, plan: dict[str, Any]) -> bool:
        if not self.out.exists():
            return False
        if not (self.out / FEATURES).exists():
            raise InputError(
                f"{self.out} exists and was not written by this command: give another --out"
            )
        check_same_plan(self.out / FEATURES, self._plan(plan), "give another --out")
        return True

    def publish(self, made: Made) -> None:
        """The folder gets its name when it is complete."""
        tree = made.folder / "features"
        shutil.rmtree(tree, ignore_errors=True)
        for _, rows in made.parts():
            for key, vector in zip(rows.keys, rows.vectors, strict=True):
                write_feature(tree / feature_name(key, self.ending), vector)
        write_json(tree / FEATURES, self._plan(made.plan))
        os.sync()  # once: a million files written atomically would be flushed a million times
        tree.rename(self.out)
