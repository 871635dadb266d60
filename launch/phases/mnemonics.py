"""Learning the pixels of exemplars: of the step's classes, once they are drawn, and of old ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards.images import png_of
from data_shards.settings import InputError
from data_shards.sources import SourceImage
from data_shards.storage.dataset import SampleError, ShardDataset
from launch.execution.executor import Executor
from launch.execution.rank import RankContext
from launch.exits import Preempted
from launch.phases.exemplar_groups import Groups, Unit, expected_updates, units_of
from launch.phases.exemplars import ChooseExemplars, learned, stored_image, write_memory
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from launch.runs.run import Chain
from monitoring.run_folder import EXEMPLARS_FILE, EXEMPLARS_FOLDER
from trainer.arrays import read_arrays, write_arrays
from trainer.heads.collectives import Ranks
from trainer.methods.images import Exemplars
from trainer.mnemonics.footprint import update_footprint
from trainer.mnemonics.optimisation import Optimisation
from trainer.mnemonics.training import MnemonicsSpec, optimise
from trainer.mnemonics.unrolled import Classified
from trainer.model import Model


@dataclass(frozen=True)
class MnemonicsJob:
    """Which exemplars the ranks optimise."""

    chain: Chain
    step: int
    want: Exemplars
    units: tuple[Unit, ...]
    updates: tuple[int, ...]
    """Of each unit, if all classes have as many images: for progress."""
    model: Path
    """The step's trained model."""
    drawn: Path
    """The memory as it was chosen."""
    part: Path
    """Where the units' files go."""
    origin: str
    """The phase's fingerprint."""


class LearnExemplars(Kind[Exemplars]):
    """By the step's trained model, before that is fine-tuned on them. Groups of classes are shared
    out over the ranks: what comes of a group depends on it alone, not on the number of ranks."""

    name = "learn-exemplars"
    where = "ranks"
    makes_memory = True

    def wants(self, at: Step) -> tuple[Exemplars, ...]:
        memory = at.run.memory(at.chain)
        return (memory,) if memory is not None and learned(at) else ()

    def inputs(self, at: Step, want: Exemplars) -> tuple[Phase, ...]:
        drawn = next(p for p in at.phases if isinstance(p.kind, ChooseExemplars))
        return (at.model_before(LearnExemplars), drawn)

    def decides(self, at: Step, want: Exemplars) -> Any:
        new = want.choose == "mnemonics"
        return [want.learning.deciding(), new, want.adjust, at.number, at.chain.seed]

    def output(self, at: Step, want: Exemplars) -> Output:
        return Output(at.folder / EXEMPLARS_FOLDER, optional=(EXEMPLARS_FILE,))

    def work(self, phase: Phase, executor: Executor) -> str:
        at, want = phase.at, phase.want
        trained, drawn = phase.inputs
        part = phase.output.path.with_name(f"{EXEMPLARS_FOLDER}.part")
        part.mkdir(parents=True, exist_ok=True)
        units = tuple(units_of(at, want))
        job = MnemonicsJob(
            chain=at.chain,
            step=at.number,
            want=want,
            units=units,
            updates=tuple(expected_updates(at, want, unit) for unit in units),
            model=trained.output.path.resolve(),
            drawn=drawn.output.path.resolve(),
            part=part.resolve(),
            origin=phase.fingerprint,
        )
        executor.on_ranks(phase.name, learn_exemplars, job)
        files = [_file(job, unit) for unit in job.units]
        if not all(file.exists() for file in files):
            raise Preempted(phase.name)
        found = [read_arrays(file, job.origin, _ARRAYS) for file in files]
        memory = ShardDataset.open(job.drawn)
        source = {**memory.manifest["source"], "adjusted": want.adjust}
        write_memory(phase, _images(memory, found), part, source, before=memory)
        return _told(found)

    def iterations(self, at: Step, want: Exemplars) -> int:
        # as rank 0 reports them, which has the first unit and every world-th behind it
        world = max(1, at.run.config.cluster.workers)
        return sum(expected_updates(at, want, unit) for unit in units_of(at, want)[::world])

    def effort(self, at: Step, want: Exemplars) -> Effort:
        size = at.run.config.data.image_size
        assert size is not None, "plans know the size of images"
        footprint = update_footprint(
            at.run.embedder(at.chain, at.number),
            at.run.classifier(at.chain, at.number),
            want.learning,
            at.run.benchmark.row_ends[at.number],
            size,
        )
        how, turns = want.learning, self.iterations(at, want)
        pool = how.classes * how.images * 3 * size[0] * size[1]  # of 8 bits
        peak = footprint.peak + pool
        return Effort(turns=turns, turn=tuple(footprint.operations), peak=peak)


_ARRAYS = ("samples", "pixels", "before", "learned", "rounded")
"""Of a unit's file: samples [n] of the memory as it was chosen, their images [n, 3, H, W] uint8,
and `Optimisation.verdict`; all of them empty where nothing was to be learned."""


def _file(job: MnemonicsJob, unit: Unit) -> Path:
    return job.part / f"{unit.name}.safetensors"


def _images(memory: ShardDataset, found: list[dict[str, Any]]) -> Iterator[SourceImage]:
    """The memory with the pixels found, in its own order. Raises InputError for a damaged image."""
    place = {
        sample: own["pixels"][number]
        for own in found
        for number, sample in enumerate(own["samples"].tolist())
    }
    for sample in range(len(memory)):
        try:
            image = stored_image(memory, sample)
        except SampleError as error:
            raise InputError(
                f"{memory.location}: {error}: restore the folder, or move it away and run again"
            ) from error
        if sample in place:
            image = image._replace(
                image=png_of(np.ascontiguousarray(place[sample].transpose(1, 2, 0)))
            )
        yield image


def _told(found: list[dict[str, Any]]) -> str:
    """The mean outer loss of all groups, for people."""
    found = [own for own in found if len(own["samples"])]
    if not found:
        return "too few images of each class to learn any"
    before, learned, rounded = (
        float(np.mean([own[name] for own in found])) for name in ("before", "learned", "rounded")
    )
    count = sum(len(own["samples"]) for own in found)
    return (
        f"{count:,} images learned: outer loss {before:.3f} before, {rounded:.3f} now "
        f"({learned:.3f} before rounding)"
    )


def learn_exemplars(context: RankContext, job: MnemonicsJob) -> None:
    """What each rank does: its units, one after the other. Raises InputError."""
    context.metrics.step.set(job.step)
    context.activity.turn("preparing")
    ranks, network = context.ranks, None
    groups = Groups(context.run, job.chain, job.step, job.want.learning, job.drawn)
    # by number, not by what is left: ranks that looked at different moments would leave some out
    own = list(zip(job.units, job.updates, strict=True))[ranks.rank :: ranks.world]
    of, before = sum(updates for _, updates in own), 0
    for unit, updates in own:
        out = _file(job, unit)
        if out.exists():
            before += updates
            continue
        context.activity.turn("reading input")
        network = network or _network(job, context.device)
        group, samples = groups.group(unit, context.device)
        if not group.sides:  # one exemplar a class: no half to judge the other by, so they stay
            context.run.fence.check()
            write_arrays(out, {name: np.empty(0) for name in _ARRAYS}, job.origin)
            continue
        spec = MnemonicsSpec(
            optimisation=Optimisation(group, network, job.want.learning, job.chain.seed),
            settings=job.want.learning,
            unfinished=out.with_suffix(".part"),
            origin=job.origin,
            fence=context.run.fence.check,
            before=before,
            of=of,
        )
        before += spec.optimisation.total
        found = optimise(spec, context.metrics, context.report, context.activity)
        if found is None:
            return
        context.run.fence.check()
        write_arrays(out, {"samples": samples, **found}, job.origin)
        spec.unfinished.unlink(missing_ok=True)


def _network(job: MnemonicsJob, device: torch.device) -> Classified:
    """The step's trained model. Raises InputError for one of unknown making."""
    model = Model.open(job.model)
    if model.adopted:
        raise InputError(
            "exemplars are learned by the gradient through a network's training, and an adopted "
            "network is not trained: set memory.choose=herding for a run with an adopted model"
        )
    rows = model.sharded_rows(Ranks()).weight.detach()
    return Classified(model.embedder(), rows, model.classifier).to(device)
