"""A gallery: a folder with a file a shard, which can be upgraded; see `trainer.gallery`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.files import sha256
from data_shards.settings import InputError
from launch.models.sinks.interface import Made, OnDisk, join_ids
from launch.models.work_folder import locked
from monitoring.run_folder import LOGS_FOLDER, TARGETS_FOLDER
from trainer.arrays import read_embeddings
from trainer.gallery import Gallery, Part, upgraded

WORK = "upgrade"
"""Subfolder with the vectors that an unfinished upgrade has embedded so far."""


@dataclass(frozen=True)
class GalleryFolder(OnDisk):
    """A `Store`: a gallery's folder."""

    @property
    def upgrade(self) -> Path:
        return self.out / WORK

    def holds(self, plan: dict[str, Any]) -> bool:
        if not self.out.exists():
            return False
        gallery = Gallery.open(self.out)
        if [gallery.dataset, *gallery.dimensions] != [plan["dataset"], plan["model"]]:
            models = " and ".join(gallery.dimensions)
            raise InputError(
                f"{self.out} is of dataset {gallery.dataset}, by model {models}: give another --out"
            )
        return True

    def publish(self, made: Made) -> None:
        """Turns the folder of the vectors into the gallery: it is renamed when complete."""
        out, model = self.out, made.model
        rows = {shard: len(read_embeddings(f, model)[0]) for shard, f in made.files.items()}
        parts = tuple(
            Part(file.name, shard, model, rows[shard], sha256(file))
            for shard, file in made.files.items()
        )
        join_ids(made.files.values(), made.folder / "ids.tsv")
        Gallery(made.folder, made.plan["dataset"], {model: made.dimension}, parts).save()
        made.folder.rename(out)
        for file in made.files.values():
            (out / file.name).with_suffix(".tsv").unlink()
        for of_the_actors in (TARGETS_FOLDER, LOGS_FOLDER):
            shutil.rmtree(out / of_the_actors, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        Gallery.open(self.out)  # before `locked`, which would make a missing folder
        with locked(self.out):
            yield
            Gallery.open(self.out).sweep()  # what was replaced, or left half written

    @contextmanager
    def held(self, dataset: str, dimension: int) -> Iterator[Gallery]:
        gallery = Gallery.open(self.out)
        if gallery.dataset != dataset:
            raise InputError(
                f"{self.out} is of dataset {gallery.dataset}, not {dataset}: give the --shards "
                "that it was made of"
            )
        yield gallery

    def replace(self, made: Made) -> None:
        """Atomic: at any moment the gallery is the old or the new one."""
        fresh = ((shard, *read_embeddings(file, made.model)) for shard, file in made.files.items())
        upgraded(Gallery.open(self.out), made.model, made.dimension, fresh).save()
