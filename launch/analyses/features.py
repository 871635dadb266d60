"""Where a model puts images of some classes, their exemplars and generated features of them, in
the plane by t-SNE (GFR, Figure 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from data_shards.counter_rng import stream_key
from data_shards.files import write_json
from data_shards.settings import InputError
from data_shards.storage.dataset import ShardDataset
from launch.analyses.opened import Ids, chain_of, drawn, images_of, model_of, opened
from launch.analyses.plane import TSNE
from launch.runs.run import Chain, Run
from launch.terminal.progress import progress
from monitoring.analysis_schemas import MOST_CLASSES
from monitoring.run_folder import EXEMPLARS_FOLDER, GENERATOR_FOLDER, features_file
from trainer.backbones import Embedder
from trainer.entrance import EMBEDDING, Entrance
from trainer.heads.collectives import Ranks
from trainer.methods.replay import Generator
from trainer.model import Model
from trainer.replay.source import FeatureSource

_CLASSES, _EACH = 10, 40
"""Classes unless some are named, and features of each from one origin, at most."""


@dataclass(frozen=True)
class Origin:
    """Features of some classes, all from one origin."""

    name: str
    rows: Ids
    """[n] the classifier row of each."""
    vectors: NDArray[np.float32]
    """[n, d]"""


def features(
    folder: Path,
    console: Console,
    *,
    method: str,
    seed: int | None = None,
    step: int | None = None,
    classes: Sequence[str] = (),
    training: bool = False,
) -> Path:
    """Lays features by the model of a learning step out in the plane, and writes them.

    `seed` is the method's lowest unless it is given, `step` the last one finished; `classes` are
    ten of those learned, evenly spaced. Of each, at most 40 test images, or training images where
    no learned class is tested or `training` asks for them; as many exemplars, where the method
    keeps some, and the images that they began as, where their pixels were learned; and 40 features
    that its generator draws. All by draws of the seed. Returns the file. Raises InputError.
    """
    tsne = TSNE()  # before anything is embedded
    run, finished = opened(folder)
    chain, step = _chosen(run, finished, method, seed, step)
    rows = _rows(run, step, classes)
    model = Model.open(model_of(run, chain, step))
    found = _of_images(run, chain, step, rows, model, console, training)
    if (source := _source(run, chain, step, model)) is not None:
        found.append(generated(source, rows, _EACH, chain.seed))
    vectors = np.concatenate([origin.vectors for origin in found])
    with console.status(f"laying out {len(vectors):,} features"):
        points = tsne(vectors, chain.seed)
    groups, first = [], 0
    for origin in found:
        own = points[first : (first := first + len(origin.rows))]
        for row in rows[np.isin(rows, origin.rows)].tolist():
            label = str(run.benchmark.names[row])
            chosen = own[origin.rows == row].round(3).tolist()
            groups.append({"label": label, "origin": origin.name, "points": chosen})
    names = {"method": chain.method, "seed": chain.seed, "step": step}
    target = features_file(folder, chain.name, step)
    write_json(target, {"version": 1, **names, "model": model.fingerprint, "groups": groups})
    return target


def _chosen(
    run: Run, finished: dict[Chain, list[int]], method: str, seed: int | None, step: int | None
) -> tuple[Chain, int]:
    """The chain and step that are meant. Raises InputError saying which there are."""
    chain = chain_of(run, finished, method, seed)
    steps = finished[chain]
    step = steps[-1] if step is None else step
    if step not in steps:
        there = ", ".join(map(str, steps))
        raise InputError(
            f"{run.folder}: {chain.name} has no finished model of step {step}, only of: {there}"
        )
    return chain, step


def _rows(run: Run, step: int, classes: Sequence[str]) -> Ids:
    """The classifier rows of the classes asked for, ascending. Raises InputError."""
    learned = run.benchmark.row_ends[step]
    if not classes:
        return np.unique(np.linspace(0, learned - 1, _CLASSES).astype(np.int64))
    if len(classes) > MOST_CLASSES:
        raise InputError(
            f"{len(classes)} classes have more colours than can be told apart: name at most "
            f"{MOST_CLASSES} by --class"
        )
    names = run.benchmark.names[:learned].tolist()
    row_of = {str(name): row for row, name in enumerate(names)}
    for name in classes:
        if name not in row_of:
            raise InputError(
                f"--class {name!r} is none of the {learned:,} classes learned up to step {step}, "
                f"such as {str(names[0])!r}"
            )
    return np.unique([row_of[name] for name in classes])


def _of_images(
    run: Run,
    chain: Chain,
    step: int,
    rows: Ids,
    model: Model,
    console: Console,
    training: bool,
) -> list[Origin]:
    """The features of test images, or of training images, of exemplars and their beginnings."""
    benchmark, seed = run.benchmark, chain.seed
    tested = bool(benchmark.classified) and not training
    parts = benchmark.classified if tested else benchmark.steps
    of_rows = benchmark.row_of_identity[run.dataset.identity]
    name = "test" if tested else "training"
    samples = _of_each(np.concatenate(parts[: step + 1]), of_rows, rows, (seed, name))
    wanted = [(name, run.dataset, samples, of_rows[samples])]
    if run.memory(chain) and (run.step_folder(chain, step) / EXEMPLARS_FOLDER).exists():
        memory = run.exemplars(chain, step)
        row_of = {str(name): row for row, name in enumerate(benchmark.names.tolist())}
        of_identities = np.array([row_of.get(str(name), -1) for name in memory.names.tolist()])
        of_rows = of_identities[memory.identity]
        samples = _of_each(np.arange(len(memory)), of_rows, rows, (seed, "exemplar"))
        wanted.append(("exemplar", memory, samples, of_rows[samples]))
        started = _started(run, step, memory, samples, of_rows[samples])
        wanted.append(("start", run.dataset, *started))
    found, embedder = [], model.embedder()
    total, done = sum(len(samples) for _, _, samples, _ in wanted), 0
    with progress(console, "embedding", total) as hear, torch.inference_mode():
        for name, dataset, samples, own in wanted:
            vectors = [np.empty((0, model.settings.dimension), dtype=np.float32)]
            for images in _images(run, dataset, samples):
                vectors.append(embedder(images).float().numpy())
                hear(done := done + len(images))
            found.append(Origin(name, own, np.concatenate(vectors)))
    return found


def _started(run: Run, step: int, memory: ShardDataset, samples: Ids, rows: Ids) -> tuple[Ids, Ids]:
    """The training images that exemplars began as, and their rows, in the order of `samples`.

    Of classes with an exemplar that is no longer its image byte for byte. Their keys tell: an
    exemplar's is its identity's name and its image's key.
    """
    dataset, found = run.dataset, [np.empty(0, dtype=np.int64)]
    trained = np.concatenate(run.benchmark.steps[: step + 1])
    of_rows = run.benchmark.row_of_identity[dataset.identity[trained]]
    for row in np.unique(rows).tolist():
        own, images = samples[rows == row], trained[of_rows == row]
        name = str(run.benchmark.names[row])
        place = dict(zip(dataset.keys(images), images.tolist(), strict=True))
        keys = [key.removeprefix(f"{name}/") for key in memory.keys(own)]
        begun = [place.get(key, -1) for key in keys]
        if min(begun) < 0:  # from a run that this one continues: its images are elsewhere
            continue
        pairs = zip(own.tolist(), begun, strict=True)
        if any(memory.image(after) != dataset.image(before) for after, before in pairs):
            found.append(np.array(begun))
    started = np.concatenate(found)
    return started, run.benchmark.row_of_identity[dataset.identity[started]]


def _images(run: Run, dataset: ShardDataset, samples: Ids) -> Any:
    return images_of(dataset, samples, run.config.data) if len(samples) else ()


def _of_each(samples: Ids, of_rows: Ids, rows: Ids, draw: tuple[int, str]) -> Ids:
    """At most `_EACH` of the `samples` of each of `rows`, by a draw; those of a row together."""
    seed, what = draw
    own = of_rows[samples]
    chosen = [drawn(samples[own == row], _EACH, seed, f"features/{what}/{row}") for row in rows]
    return np.concatenate(chosen)


@dataclass(frozen=True)
class _Embedded:
    """Draws embeddings: what the network makes of images, or of a block's output, that it draws."""

    source: FeatureSource
    entrance: Entrance

    @property
    def rows(self) -> int:
        return self.source.rows

    @property
    def noise(self) -> int:
        return self.source.noise

    def features(self, classes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.entrance.embedded(self.source.features(classes, noise))


def _source(run: Run, chain: Chain, step: int, model: Model) -> FeatureSource | None:
    """What draws embeddings of the classes up to `step`, by its `model`, if the chain's method has
    that. Raises DamagedError, InputError."""
    want = run.config.methods[chain.method].recipe().want(Generator)
    folder = run.step_folder(chain, step) / GENERATOR_FOLDER
    if want is None or not folder.exists():
        return None
    source = want.load(folder, Ranks(), torch.device("cpu"))
    embedder, size = model.embedder(), model.image_size
    if want.place == EMBEDDING or size is None or not isinstance(embedder, Embedder):
        return source
    return _Embedded(source, Entrance(embedder, want.place, size))


@torch.inference_mode()
def generated(source: FeatureSource, rows: Ids, each: int, seed: int) -> Origin:
    """`each` features that `source` draws of each of `rows` that it knows, by a draw of `seed`."""
    known = np.repeat(rows[rows < source.rows], each)
    generator = torch.Generator().manual_seed(int(stream_key(seed, "drawn features") >> 1))
    noise = torch.randn(len(known), source.noise, generator=generator)
    vectors = source.features(torch.from_numpy(known), noise)
    return Origin("generated", known, vectors.float().numpy())
