"""The memory: a few images of every identity so far, kept for the steps to come."""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.files import write_atomically, write_json
from data_shards.images import ImageSettings
from data_shards.pipeline import PipelineSettings
from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.storage.dataset import SampleError, ShardDataset
from data_shards.writing.writer import write_dataset
from launch.execution.executor import Executor
from launch.inference.worker import ShardWorker
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from launch.runs.continuing import carried_exemplars
from launch.runs.run import Run
from monitoring.run_folder import DRAWN_FOLDER, EXEMPLARS_FILE, EXEMPLARS_FOLDER, PHASES_FOLDER
from trainer.exemplar_sheet import exemplar_sheet
from trainer.exemplars import drawn, herding
from trainer.methods.images import Choice, Exemplars
from trainer.methods.spelling import spelled
from trainer.teacher import TeacherSettings
from untrusted.files import read_bytes
from untrusted.json_text import parse_json

Ids = NDArray[np.int64]
_UNIT = 4096
"""Images that a unit of work chooses from, more or less: whole identities."""
_FILE_BYTES = 1 << 28
_SHARD = 64
"""Exemplars in a shard. Few, since an order that reads windows of shards mixes no further than a
window: of one large shard all exemplars would come at once, and then none for the rest of an epoch.
"""


class ChooseExemplars(Kind[Exemplars]):
    """Chosen from the data, once, by the step's trained model; a small dataset of their own.

    An identity's exemplars are an ordered list, the dataset's own order: where each must give some
    up, the first ones stay.
    """

    name = "exemplars"
    where = "actors"
    makes_memory = True

    def wants(self, at: Step) -> tuple[Exemplars, ...]:
        memory = at.run.memory(at.chain)
        return () if memory is None else (memory,)

    def inputs(self, at: Step, want: Exemplars) -> tuple[Phase, ...]:
        return (_model(at), *exemplars_before(at))

    def decides(self, at: Step, want: Exemplars) -> Any:
        return [spelled(want), at.number, at.chain.seed]

    def output(self, at: Step, want: Exemplars) -> Output:
        folder = at.folder / PHASES_FOLDER / DRAWN_FOLDER if learned(at) else at.folder
        return Output(folder / EXEMPLARS_FOLDER, optional=(EXEMPLARS_FILE,))

    def effort(self, at: Step, want: Exemplars) -> Effort:
        if want.choose != "herding" or (not at.number and at.run.config.continues is not None):
            return Effort()
        return Effort(at.number, len(at.run.benchmark.steps[at.number]))

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run, want = phase.at, phase.at.run, phase.want
        share = want.share(run.benchmark.row_ends[at.number])
        part = phase.output.path.with_name(f"{EXEMPLARS_FOLDER}.part")
        part.mkdir(parents=True, exist_ok=True)
        lists = _chosen(phase, executor, part, share)
        before = _memory_before(at)
        old = _first_of_each(before, share) if before is not None else iter(())
        new = (_image(run.dataset, sample) for own in lists for sample in own)
        source = {"kind": "exemplars", "choose": want.choose, "share": share}
        manifest = write_memory(phase, chain(old, new), part, source)
        few = sum(len(own) < share for own in lists)
        return (
            f"{manifest['samples']:,} images of {manifest['identities']:,} identities, {share} each"
            + (f", but of {few:,} that have fewer all" if few else "")
        )


def write_memory(
    phase: Phase,
    images: Iterable[SourceImage],
    part: Path,
    source: dict[str, Any],
    before: ShardDataset | None = None,
) -> dict[str, Any]:
    """Writes a memory of `images` as the `phase`'s output, and deletes the folder `part` of its
    unfinished work; `source` is what its manifest says of it, `before` the same images before they
    were learned. Returns the manifest."""
    run, out = phase.at.run, phase.output.path
    run.fence.check()
    written = part / "dataset"
    shutil.rmtree(written, ignore_errors=True)
    lossless = ImageSettings(png=True)  # learned images, which may be those of earlier steps
    manifest = write_dataset(images, written, source, shard_samples=_SHARD, image=lossless)
    told = exemplar_sheet(ShardDataset.open(written), run.config.evaluation.examples, before)
    run.fence.check()
    write_json(out.with_name(EXEMPLARS_FILE), told)
    shutil.rmtree(out, ignore_errors=True)
    written.rename(out)
    shutil.rmtree(part)
    return manifest


def learned(at: Step) -> bool:
    """Whether pixels of the exemplars are learned, once they are chosen, at a step.

    A run that continues another has no image of its step 0, and adjusts none there.
    """
    memory = at.run.memory(at.chain)
    if memory is None:
        return False
    new = memory.choose == "mnemonics" and has_images(at)
    return new or (memory.adjust and at.number > 0)


def has_images(at: Step) -> bool:
    """Whether a step has images of identities that it learned."""
    return bool(at.number) or at.run.config.continues is None


def _model(at: Step) -> Phase:
    """By which they are chosen: fine-tuning needs them, so that it is not the step's last one."""
    return at.model_before(ChooseExemplars)


def exemplars_before(at: Step) -> tuple[Phase, ...]:
    """The phase that made the memory which step `at` begins with, if there is one."""
    made = at.at(at.number - 1).memory if at.number else None
    return () if made is None else (made,)


def _memory_before(at: Step) -> ShardDataset | None:
    """The memory that the step begins with; of a run that continues another, that one's."""
    if at.number:
        return at.run.exemplars(at.chain, at.number - 1)
    if at.run.config.continues is None:
        return None
    return ShardDataset.open(carried_exemplars(at.run.config, at.chain.name))


def _chosen(phase: Phase, executor: Executor, part: Path, share: int) -> list[list[int]]:
    """The samples chosen of each identity that the step learned, in the order of their rows."""
    at, run, want = phase.at, phase.at.run, phase.want
    if not has_images(at):
        return []
    model = _model(at).output.path.resolve()
    files, calls = [], []
    for number, (samples, rows) in enumerate(whole_identities(run, at.number)):
        files.append(part.resolve() / f"chosen-{number:05d}.json")
        if not files[-1].exists():
            given = (samples, rows, want.choose, share, at.chain.seed)
            calls.append((files[-1], model, *given, run.config.data, run.config.teacher.batch))
    executor.map(choose, calls)
    return [own for file in files for own in parse_json(read_bytes(file, _FILE_BYTES))]


def whole_identities(run: Run, step: int) -> Iterator[tuple[Ids, Ids]]:
    """The training images of whole identities of a step, and their rows: by row, then by key.

    So an identity's images come in the same order in whatever order the dataset has them.
    """
    samples = run.benchmark.steps[step]
    rows = run.benchmark.row_of_identity[run.dataset.identity[samples]]
    order = np.lexsort((run.dataset.key_hashes[samples], rows))
    samples, rows = samples[order], rows[order]
    ends = np.append(np.flatnonzero(np.diff(rows)) + 1, len(rows))  # behind each identity
    first = 0
    for end, following in zip(ends, [*ends[1:], None], strict=True):
        if following is None or following - first > _UNIT:
            yield samples[first:end], rows[first:end]
            first = end


def choose(
    worker: ShardWorker,
    out: Path,
    model_folder: Path,
    samples: Ids,
    rows: Ids,
    how: Choice,
    share: int,
    seed: int,
    data: PipelineSettings,
    batch: int,
) -> None:
    """A unit of work: writes the lists of `share` samples chosen of each identity.

    `samples` [n] are of whole identities with `rows` [n]. Damaged ones are passed over.
    """
    dataset = worker.dataset
    whole = np.array([image is not None for image in dataset.images(samples)], dtype=bool)
    samples, rows = samples[whole], rows[whole]
    if how == "herding":
        _, embedder, _ = worker.model(model_folder, TeacherSettings())
        vectors = worker.embed(embedder, samples, data, batch)
    lists = []
    for row in np.unique(rows):
        own = np.flatnonzero(rows == row)
        picked = (
            herding(vectors[own], share)
            if how == "herding"
            else drawn(dataset.key_hashes[samples[own]], share, seed)
        )
        lists.append(samples[own[picked]].tolist())
    worker.check()
    write_atomically(out, json.dumps(lists).encode())


def _image(dataset: ShardDataset, sample: int) -> SourceImage:
    """An image on its way into the memory, byte for byte."""
    image = stored_image(dataset, sample)
    # another dataset, of a run that continues this one, may have the same key for another image
    return image._replace(key=f"{image.identity}/{image.key}")


def stored_image(dataset: ShardDataset, sample: int) -> SourceImage:
    """A sample as it came into a dataset. Raises SampleError for a damaged one."""
    identity = str(dataset.names[dataset.identity[sample]])
    (key,) = dataset.keys(np.array([sample]))
    camera = dataset.manifest["cameras"][int(dataset.camera[sample])]
    return SourceImage(dataset.image(sample), identity, camera, key)


def _first_of_each(memory: ShardDataset, share: int) -> Iterator[SourceImage]:
    """The first `share` exemplars of each identity. Raises InputError for a damaged one."""
    taken: Counter[int] = Counter()
    for sample, identity in enumerate(memory.identity.tolist()):
        taken[identity] += 1
        if taken[identity] <= share:
            try:
                yield stored_image(memory, sample)
            except SampleError as error:
                raise InputError(
                    f"{memory.location}: {error}: restore the folder, or move it away and run "
                    "again, and its step's exemplars are chosen anew"
                ) from error
