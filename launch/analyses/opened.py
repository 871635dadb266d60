"""The finished models of a run, and the test images that they are compared on."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.counter_rng import shuffled, stream_key
from data_shards.pipeline import ImageStream, PipelineSettings, Request
from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from launch.phases.status import open_run
from launch.runs.run import Chain, Run
from monitoring.run_folder import (
    EMBEDDINGS_FILE,
    EVALUATION_FILE,
    MODEL_FOLDER,
    decision_beside,
    steps_of,
)
from trainer.arrays import read_embeddings
from trainer.decisions import Decision
from trainer.model import Model

Ids = NDArray[np.int64]
_MANIFEST = "manifest.json"
_BATCH = 64
"""Images decoded and embedded at a time; no result depends on it."""


def finished_steps(run: Run) -> dict[Chain, list[int]]:
    """The learning steps of each chain whose models are finished, ascending.

    Raises InputError where there is none at all.
    """
    found = {}
    for chain in run.chains():
        steps = steps_of(run.folder, chain.name)
        there = [n for n in steps if (model_of(run, chain, n) / _MANIFEST).exists()]
        if there:
            found[chain] = there
    if not found:
        raise InputError(
            f"{run.folder} has no finished model yet: go on with `perennial run`, or see "
            f"`perennial status {run.folder}`"
        )
    return found


def opened(folder: Path) -> tuple[Run, dict[Chain, list[int]]]:
    """A run with its finished steps. Raises InputError."""
    run = open_run(folder)
    return run, finished_steps(run)


def chain_of(run: Run, finished: dict[Chain, list[int]], method: str, seed: int | None) -> Chain:
    """The chain of a method, of its lowest seed unless one is given. Raises InputError saying
    which there are."""
    chains = {chain.seed: chain for chain in finished if chain.method == method}
    if not chains:
        there = ", ".join(dict.fromkeys(chain.method for chain in finished))
        raise InputError(
            f"{run.folder} has no finished model of a method {method!r}, only of: {there}"
        )
    seed = min(chains) if seed is None else seed
    if seed not in chains:
        there = ", ".join(map(str, sorted(chains)))
        raise InputError(
            f"{run.folder}: {method} has no finished model of seed {seed}, only of: {there}"
        )
    return chains[seed]


def evaluated(run: Run, finished: dict[Chain, list[int]]) -> dict[Chain, list[int]]:
    """Those of the `finished` steps that are evaluated on learned classes: of others the decision
    may not be made yet. Raises InputError where there is none."""
    if not run.benchmark.classified or not all(map(len, run.benchmark.classified)):
        raise InputError(
            f"{run.folder} does not test images of the classes of every step: set "
            "benchmark.classified"
        )
    found = {
        chain: [n for n in steps if (run.step_folder(chain, n) / EVALUATION_FILE).exists()]
        for chain, steps in finished.items()
    }
    found = {chain: steps for chain, steps in found.items() if steps}
    if not found:
        raise InputError(f"{run.folder} has no evaluated step yet: go on with `perennial run`")
    return found


def classifier_of(run: Run, chain: Chain, step: int) -> tuple[Model, Decision]:
    """The model of a learning step and how it decides. Raises InputError for one that was not
    trained on the run's classes."""
    model, rows = Model.open(model_of(run, chain, step)), run.benchmark.row_ends[step]
    if model.adopted or model.rows != rows:
        raise InputError(
            f"{model.folder} knows {model.rows:,} classes, and the run has learned {rows:,} by "
            "then: this looks at models that were trained class by class"
        )
    beside = decision_beside(model.folder)
    return model, Decision.open(beside, model) if beside.exists() else Decision()


def vectors_of(
    run: Run, chain: Chain, step: int, model: Model, samples: Ids
) -> NDArray[np.float32]:
    """[n, d] of test images `samples` [n] (ascending) by the `model` of a learning step: those that
    its evaluation kept, or else made anew. Raises InputError for a damaged image."""
    try:
        kept, vectors = read_embeddings(
            run.step_folder(chain, step) / EMBEDDINGS_FILE, model.fingerprint
        )
        if np.isin(samples, kept).all():
            return vectors[np.searchsorted(kept, samples)]
    except InputError:  # a run of before kept none, or of an earlier model
        pass
    embedder = model.embedder()
    with torch.inference_mode():
        made = [
            embedder(images).float().numpy()
            for images in images_of(run.dataset, samples, run.config.data)
        ]
    return np.concatenate(made)


def model_of(run: Run, chain: Chain, step: int) -> Path:
    """Where the model of a learning step lies."""
    return run.step_folder(chain, step) / MODEL_FOLDER


def drawn(samples: Ids, count: int, seed: int, what: str) -> Ids:
    """At most `count` of `samples`, ascending: a draw by (seed, what) alone."""
    chosen = samples
    if len(samples) > count:
        chosen = shuffled(stream_key(seed, "analysis", what), samples)[:count]
    return np.sort(chosen)


def images_of(
    dataset: ShardDataset, samples: Ids, data: PipelineSettings
) -> Iterator[torch.Tensor]:
    """The images of `samples` as they are, [b, 3, H, W] uint8, a batch at a time.

    Raises InputError for a damaged one.
    """
    parts = [samples[i : i + _BATCH] for i in range(0, len(samples), _BATCH)]
    requests = (Request.plain(dataset, part) for part in parts)
    for _, images in ImageStream(dataset, requests, _BATCH, data, augmented=False):
        yield images
