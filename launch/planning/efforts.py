"""What a run's phases take beside the trainings of steps: images through networks on CPU actors,
and trainings of generators. Every kind of phase says it of itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.splits.benchmark import Benchmark
from launch.config.cluster import ClusterSettings
from launch.config.run import RunConfig
from launch.phases.kind import Effort, Phase
from launch.phases.planning import phases
from launch.planning.hardware import THIS, Machine, measure
from launch.planning.split import Split
from launch.runs.run import Run
from trainer.adopted import AdoptedSettings
from trainer.footprint import backward_operations, forward_operations

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Actor:
    """How fast CPU actors are."""

    number: int
    """How many there are."""
    machine: Machine | None = None
    """One of them, measured."""
    rate: float | None = None
    """Images that one embeds in a second, where somebody says so; a backward pass then counts as
    two forward ones."""


def actor_like(machine: Machine | None, cluster: ClusterSettings, rate: float | None) -> Actor:
    """Actors that embed `rate` images a second each, or are measured where ranks were, too: of a
    GPU's machine nobody has said what its CPUs can do."""
    number, threads = cluster.actor_count(), cluster.actor_threads()
    if rate is not None or machine is None or machine.name != THIS:
        return Actor(number, rate=rate)
    same = threads == cluster.worker_threads()
    return Actor(number, machine if same else measure(threads, number))


@dataclass(frozen=True)
class PhasePlan:
    """A phase of one seed, or one that several methods share."""

    methods: tuple[str, ...]
    step: int
    phase: str
    """What tells it apart in its step."""
    forward: int
    """Images through a network on CPU actors."""
    backward: int
    """Backward passes of an image each, there."""
    iterations: int
    """Of a training, such as a generator's."""
    seconds: float | None
    """At least, with all actors or ranks; none: how fast these are is not known."""
    peak: int = 0
    """Bytes that a rank holds at most, where that may be more than in the step's training."""


def plan_phases(
    config: RunConfig, split: Split, machine: Machine | None, actor: Actor | None
) -> Iterator[PhasePlan]:
    """The phases that take more than a moment, of the first seed, in the order of a run.

    Phases with the same result are done once, by the first method that wants them.
    """
    run, found = counted_run(config, split), dict[str, list[Phase]]()
    for phase in phases(run):
        found.setdefault(phase.fingerprint, []).append(phase)
    for same in found.values():
        phase = same[0]
        effort = phase.effort
        if effort.forward or effort.turns:
            yield PhasePlan(
                methods=tuple(one.at.chain.method for one in same),
                step=phase.at.number,
                phase=phase.kind.label(phase.want),
                forward=effort.forward,
                backward=effort.backward,
                iterations=phase.iterations,
                seconds=_seconds(phase, effort, split.size, machine, actor),
                peak=effort.peak,
            )


def counted_run(config: RunConfig, split: Split) -> Run:
    """A run of one seed over as many identities and images as `split` says, none of which need be
    there: for what follows from their numbers."""
    data = config.data.model_copy(update={"image_size": split.size})
    config = config.model_copy(
        update={"seeds": config.seeds[:1], "benchmark": config.benchmark.pinned(), "data": data}
    )
    none = np.empty(0, dtype=np.int64)
    benchmark = Benchmark(
        steps=tuple(map(_counted, split.images)),
        row_of_identity=none,
        row_ends=split.row_ends,
        query=np.arange(split.tested or 0),
        gallery=none,
        pairs=none.reshape(0, 2),
        same=none.astype(bool),
        folds=none,
        seen_query=none,
        seen_gallery=none,
        names=np.empty(0, dtype=np.object_),
    )
    dataset: Any = _Nowhere()
    return Run(Path(), config, dataset, benchmark, {})


@dataclass(frozen=True)
class _Nowhere:
    """A dataset of which nothing but numbers is known."""

    fingerprint: str = "not there"


def _counted(images: int) -> Ids:
    """[images] samples of no memory, for their number."""
    return np.broadcast_to(np.int64(0), images)


def _seconds(
    phase: Phase,
    effort: Effort,
    size: tuple[int, int],
    machine: Machine | None,
    actor: Actor | None,
) -> float | None:
    embedding = _embedding_seconds(phase, effort, size, actor) if effort.forward else 0.0
    turns: float | None = 0.0
    if effort.turns:
        turn = None if machine is None else machine.compute_seconds(effort.turn)
        turns = None if turn is None else effort.turns * turn
    return None if embedding is None or turns is None else embedding + turns


def _embedding_seconds(
    phase: Phase, effort: Effort, size: tuple[int, int], actor: Actor | None
) -> float | None:
    """Of the images through a network on actors; they share the images evenly at best."""
    at, run = phase.at, phase.at.run
    if actor is None:
        return None
    if actor.rate is not None:
        return (effort.forward + 2 * effort.backward) / actor.rate / actor.number
    given = run.given.get(at.chain) if effort.step == 0 else None
    network = run.embedder(at.chain, effort.step) if given is None else given.settings
    if actor.machine is None or isinstance(network, AdoptedSettings):
        return None
    # where gradients are wanted, images go through one by one
    batch = 1 if effort.backward else run.config.teacher.batch
    forward = actor.machine.compute_seconds(forward_operations(network, size, batch)) / batch
    backward = 0.0
    if effort.backward:
        backward = actor.machine.compute_seconds(backward_operations(network, size))
    return (effort.forward * forward + effort.backward * backward) / actor.number
