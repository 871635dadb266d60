"""Which old classes a step's new ones may be confused with: the nearest by class centres."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launch.execution.executor import Executor
from launch.phases.class_means import means_of, part_of
from launch.phases.exemplars import exemplars_before
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from monitoring.run_folder import SIMILAR_FILE
from trainer.arrays import write_arrays
from trainer.methods.discriminative import Similar
from trainer.similar import Pair, similar


class SimilarClasses(Kind[Similar]):
    """Step 1 of discriminative distillation (Sec. 3.2): centres of embeddings by the previous
    model, of the step's images and of old classes' exemplars, a shard a unit."""

    name = "similar"
    where = "actors"
    only_prepares = True

    def wants(self, at: Step) -> tuple[Similar, ...]:
        want = at.recipe.want(Similar)
        return (want,) if at.number and want else ()

    def inputs(self, at: Step, want: Similar) -> tuple[Phase, ...]:
        memory = exemplars_before(at) if at.recipe.memory is not None else ()
        return (at.at(at.number - 1).model, *memory)

    def decides(self, at: Step, want: Similar) -> Any:
        teacher = at.run.config.deciding()["teacher"]
        return [want.count, at.recipe.spelled_images(), at.number, teacher]

    def output(self, at: Step, want: Similar) -> Output:
        return Output(at.folder / SIMILAR_FILE)

    def effort(self, at: Step, want: Similar) -> Effort:
        benchmark = at.run.benchmark
        images = [len(own) for own in benchmark.steps]
        count = at.recipe.count(images, benchmark.row_ends, at.number) if want.count else 0
        return Effort(at.number - 1, count)

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run, want = phase.at, phase.at.run, phase.want
        previous = run.previous(at.chain, at.number)
        assert previous is not None
        old, last = run.benchmark.rows_before(at.number), run.benchmark.row_ends[at.number]
        pairs: list[Pair] = []
        if want.count:
            memory = next(p.output.path.resolve() for p in phase.inputs[1:])
            means = self._centres(phase, executor, memory, last)
            pairs = similar(means[old:], means[:old], want.count)
        new = np.array([old + pair.new for pair in pairs], dtype=np.int64)
        near = np.array([pair.old for pair in pairs], dtype=np.int64)
        rows = np.concatenate([np.sort(near), np.arange(old, last)])
        distances = np.array([pair.distance for pair in pairs])
        run.fence.check()
        tensors = {"rows": rows, "new": new, "old": near, "distance": distances}
        write_arrays(phase.output.path, tensors, previous.fingerprint)
        shutil.rmtree(part_of(phase), ignore_errors=True)
        if not pairs:
            return f"{last - old} new classes, no old one"
        names = run.benchmark.names
        return (
            f"{len(pairs)} old classes for {last - old} new ones; the nearest are "
            f"{names[new[0]]} and {names[near[0]]}"
        )

    def _centres(
        self, phase: Phase, executor: Executor, memory: Path, last: int
    ) -> NDArray[np.float32]:
        """[last, d] by the previous model, of what the step trains on."""
        at, run = phase.at, phase.at.run
        previous = run.previous(at.chain, at.number)
        assert previous is not None
        _, benchmark = run.training_data(at.chain, at.number)
        return means_of(
            phase=phase,
            executor=executor,
            model=previous,
            samples=at.recipe.samples(benchmark, at.number),
            span=(0, last),
            memory=memory,
        )
