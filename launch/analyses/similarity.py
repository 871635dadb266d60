"""How alike a step's model and later ones see its classes, layer by layer (GFR, Figure 2)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from data_shards.files import fingerprint, write_json
from data_shards.pipeline import image_size
from data_shards.settings import InputError
from launch.analyses.opened import Ids, drawn, images_of, model_of, opened
from launch.runs.run import Chain, Run
from launch.terminal.progress import progress
from monitoring.analyses import similarities
from monitoring.run_folder import ANALYSES_FOLDER, SIMILARITY_FILE
from trainer.backbones import Embedder
from trainer.blocks import blocks, per_place, watched
from trainer.evaluation.similarity import KEPT_VARIANCE, Moments, svcca
from trainer.heads.collectives import Ranks
from trainer.model import Model

_IMAGES = 2000
"""Most images that a step's models are compared on."""
_CLASSES = 1024
"""Most classes whose logits are compared: moments have a number for each two."""
_VERSION = 1


@dataclass(frozen=True)
class _Work:
    """The finished models of a chain, and the test images of each step."""

    run: Run
    chain: Chain
    models: dict[int, Model]
    samples: dict[int, Ids]
    """Of each step that has later ones."""

    @classmethod
    def of(cls, run: Run, chain: Chain, steps: list[int]) -> "_Work":
        """What is to be compared of a chain. Raises DamagedError, InputError."""
        models = {step: Model.open(model_of(run, chain, step)) for step in steps}
        return cls(run, chain, models, {step: _test_images(run, step) for step in steps[:-1]})

    def later(self, task: int) -> list[int]:
        """The steps whose models are compared with that of step `task`."""
        return [step for step in self.models if step > task]

    def images(self, task: int) -> int:
        """How many images the models look at to be compared on a step's."""
        return len(self.samples[task]) * (1 + len(self.later(task)))

    @cached_property
    def all_images(self) -> int:
        """How many they look at for all steps."""
        return sum(map(self.images, self.samples))

    @cached_property
    def identity(self) -> str:
        """A hash of all that the result follows from."""
        models = [[step, model.fingerprint] for step, model in self.models.items()]
        images = [own.tolist() for own in self.samples.values()]
        read = [self.run.dataset.fingerprint, self.run.config.data.image_size]
        return fingerprint([_VERSION, KEPT_VARIANCE, models, images, read])

    def told(self, cells: list[dict[str, Any]]) -> dict[str, Any]:
        """Its result as the file has it."""
        names = {"method": self.chain.method, "seed": self.chain.seed}
        return {**names, "of": self.identity, "cells": cells}


def similarity(folder: Path, console: Console) -> None:
    """Compares the models of every chain of a run, and writes `SIMILARITY_FILE`.

    Each step's model is compared with all later ones on test images of the classes that the step
    learned (`Benchmark.classified`), at most 2,000, drawn by the split's seed; where no learned
    class is tested, on the benchmark's queries. Compared are the blocks of the network
    (`trainer.blocks`), the embeddings, and the logits of the step's own classes. Written after
    each chain; one whose models and images are as they were is not looked at again. Raises
    InputError.
    """
    run, finished = opened(folder)
    several = {chain: steps for chain, steps in finished.items() if len(steps) > 1}
    if not several:
        raise InputError(
            f"{folder} has models of one learning step alone, and similarity is that between two: "
            "go on with `perennial run`, or raise benchmark.steps"
        )
    every = [_Work.of(run, chain, steps) for chain, steps in several.items()]
    before = {one["of"]: one["cells"] for one in similarities(folder)}
    found = {work.chain: before[work.identity] for work in every if work.identity in before}
    total = sum(work.all_images for work in every)
    done = sum(work.all_images for work in every if work.chain in found)
    with progress(console, "comparing models", total) as hear:
        hear(done)
        for work in every:
            if work.chain not in found:
                cells = []
                for task in work.samples:
                    cells += _compared(work, task, done, hear)
                    done += work.images(task)
                found[work.chain] = cells
            chains = [work.told(found[work.chain]) for work in every if work.chain in found]
            said = {"version": _VERSION, "variance": KEPT_VARIANCE, "chains": chains}
            write_json(folder / ANALYSES_FOLDER / SIMILARITY_FILE, said)


def _test_images(run: Run, step: int) -> Ids:
    """The images on which a step's model is compared with later ones. Raises InputError."""
    benchmark = run.benchmark
    tested = benchmark.classified[step] if benchmark.classified else benchmark.query
    if not len(tested):
        raise InputError(
            f"{run.folder} tests no image of the classes of learning step {step}, and has no "
            "queries: models are compared on test images, so set benchmark.classified"
        )
    return drawn(tested, _IMAGES, run.config.benchmark.seed, f"similarity/{step}")


class _Layers:
    """What a model makes of images, layer by layer."""

    def __init__(self, run: Run, model: Model, classes: range) -> None:
        """`classes` are the rows whose logits are among it, where they are few enough."""
        self._model, self._embedder = model, model.embedder()
        self._blocks: dict[str, torch.nn.Module] = {}
        if isinstance(self._embedder, Embedder):
            self._blocks = blocks(self._embedder, image_size(run.dataset, run.config.data))
        self._rows: torch.Tensor | None = None
        if classes.stop <= model.rows and 1 < len(classes) <= _CLASSES:
            rows = model.frozen_rows(Ranks()).weight.detach().float()
            self._rows = rows[classes.start : classes.stop]

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """[samples, numbers] of each layer for `images` [b, 3, H, W] uint8, by its name."""
        with watched(self._blocks) as made:
            vectors = self._embedder(images).float()
        found = {name: per_place(output.float()) for name, output in made.items()}
        found["embedding"] = vectors
        if self._rows is not None:
            found["logits"] = self._model.classifier.inputs(vectors) @ self._rows.T
        return found


def _compared(
    work: _Work, task: int, done: int, hear: Callable[[int], None]
) -> list[dict[str, Any]]:
    """The model of step `task` compared with each later one, on the step's test images.

    `hear` is called with the number of images that models have looked at, `done` before this.
    """
    run, later = work.run, work.later(task)
    classes = range(run.benchmark.rows_before(task), run.benchmark.row_ends[task])
    first = _Layers(run, work.models[task], classes)
    others = {step: _Layers(run, work.models[step], classes) for step in later}
    moments: dict[int, dict[str, Moments]] = {step: {} for step in later}
    for images in images_of(run.dataset, work.samples[task], run.config.data):
        own = first(images)
        for step, other in others.items():
            for name, made in other(images).items():
                if name in own and len(made) == len(own[name]):  # else another architecture's
                    new = Moments(own[name].shape[1], made.shape[1])
                    moments[step].setdefault(name, new).add(own[name], made)
        done += len(images) * (1 + len(later))
        hear(done)
    return [
        {
            "task": task,
            "step": step,
            "images": len(work.samples[task]),
            "layers": {name: _measured(sums) for name, sums in layers.items()},
        }
        for step, layers in moments.items()
    ]


def _measured(sums: Moments) -> dict[str, Any]:
    found = svcca(sums)
    return {"mean": found.mean, "floor": found.floor, "directions": list(found.kept)}
