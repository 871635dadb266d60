"""Where the models of a method put images of some tested identities, learning step after step."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from data_shards.counter_rng import shuffled, stream_key
from data_shards.files import write_json
from data_shards.settings import InputError
from launch.analyses.opened import Ids, chain_of, drawn, model_of, opened, vectors_of
from launch.analyses.plane import TSNE
from launch.runs.run import Run
from launch.terminal.progress import progress
from monitoring.analysis_schemas import MOST_CLASSES
from monitoring.run_folder import features_over_steps_file
from trainer.evaluation.protocol import Embedded
from trainer.model import Model

_IDENTITIES, _EACH = 10, 40
"""Identities unless some are named, and images of each, at most."""
_ENOUGH = 8
"""Images that show whether they are together: of identities with as many, some are drawn."""
_FEW = 5.0
"""The least perplexity that van der Maaten and Hinton 2008 name."""


def features_over_steps(
    folder: Path,
    console: Console,
    *,
    method: str | None = None,
    seed: int | None = None,
    identities: Sequence[str] = (),
) -> list[Path]:
    """Lays the embeddings of some test images out in the plane, by each finished step's model of a
    method, or of all, and writes a file for each.

    The images are of the benchmark's queries and gallery, whose identities are never trained on;
    where it has none, of the learned classes. They are the same for all steps and methods, by a
    draw of the benchmark's seed. t-SNE is of what tests compare: directions, where their distance
    is cosine; each step begins from the points of the one before. `seed` is each method's lowest
    unless it is given. Returns the files. Raises InputError.
    """
    tsne = TSNE()  # before anything is embedded
    run, finished = opened(folder)
    methods = dict.fromkeys(chain.method for chain in finished) if method is None else [method]
    chains = [chain_of(run, finished, name, seed) for name in methods]
    chosen = _chosen(run, identities)
    samples = np.sort(np.concatenate(list(chosen.values())))
    each = max(_FEW, len(samples) / len(chosen))  # neighbours to be kept: those of one identity
    files, done = [], 0
    with progress(console, "laying out", sum(len(finished[c]) for c in chains), "steps") as hear:
        for chain in chains:
            points: NDArray[np.float64] | None = None
            steps = []
            for step in finished[chain]:
                model = Model.open(model_of(run, chain, step))
                vectors = vectors_of(run, chain, step, model, samples)
                compared = Embedded(samples, vectors, run.config.evaluation.distance).of(samples)
                points = tsne(compared.numpy(), chain.seed, perplexity=each, begin=points)
                groups = [
                    {
                        "label": label,
                        "origin": "test",
                        "points": points[np.searchsorted(samples, own)].round(3).tolist(),
                    }
                    for label, own in chosen.items()
                ]
                steps.append({"step": step, "model": model.fingerprint, "groups": groups})
                hear(done := done + 1)
            files.append(features_over_steps_file(folder, chain.name))
            names = {"method": chain.method, "seed": chain.seed}
            write_json(files[-1], {"version": 1, **names, "steps": steps})
    return files


def _chosen(run: Run, names: Sequence[str]) -> dict[str, Ids]:
    """The test images, ascending, of each identity named, or else of some. Raises InputError."""
    benchmark, dataset, seed = run.benchmark, run.dataset, run.config.benchmark.seed
    tested = np.unique(np.concatenate([benchmark.query, benchmark.gallery]))
    if not len(tested):
        tested = np.unique(np.concatenate([tested, *benchmark.classified]))
    if not len(tested):
        raise InputError(f"{run.folder} tests no images: see benchmark.test_identities")
    images_of, counts = np.unique(dataset.identity[tested], return_counts=True)
    number_of = {str(dataset.names[number]): number for number in images_of.tolist()}
    if len(names) > MOST_CLASSES:
        raise InputError(
            f"{len(names)} identities have more colours than can be told apart: name at most "
            f"{MOST_CLASSES} by --class"
        )
    for name in names:
        if name not in number_of:
            raise InputError(
                f"--class {name!r} is none of the {len(number_of):,} identities that are tested, "
                f"such as {next(iter(number_of))!r}"
            )
    order = shuffled(stream_key(seed, "analysis", "features/identities"), np.arange(len(counts)))
    fullest = order[np.argsort(-np.minimum(counts[order], _ENOUGH), kind="stable")]
    numbers = [number_of[name] for name in names] or images_of[fullest[:_IDENTITIES]].tolist()
    return {
        str(dataset.names[number]): drawn(
            tested[dataset.identity[tested] == number], _EACH, seed, f"features/tested/{number}"
        )
        for number in sorted(numbers)
    }
