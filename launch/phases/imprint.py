"""Rows that new identities begin with: where the previous model already sees their images."""

import shutil
from typing import Any

from launch.execution.executor import Executor
from launch.phases.class_means import means_of, part_of
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from trainer.class_means import write_class_means
from trainer.heads.collectives import Ranks
from trainer.imprinting import Imprinted, imprinted


class ImprintRows(Kind[Imprinted]):
    """The imprinted rows of a recipe that starts with them, a shard a unit."""

    name = "imprint"
    where = "actors"
    only_prepares = True
    runs_teacher = True

    def wants(self, at: Step) -> tuple[Imprinted, ...]:
        return (Imprinted(),) if at.recipe.start.new_rows == "imprinted" else ()

    def inputs(self, at: Step, want: Imprinted) -> tuple[Phase, ...]:
        return (at.at(at.number - 1).model,)

    def decides(self, at: Step, want: Imprinted) -> Any:
        rows = at.run.benchmark.row_ends[at.number - 1 : at.number + 1]
        return [*rows, at.number, at.run.config.deciding()["teacher"]]

    def output(self, at: Step, want: Imprinted) -> Output:
        return Output(at.folder / "imprinted.safetensors")

    def effort(self, at: Step, want: Imprinted) -> Effort:
        return Effort(at.number - 1, len(at.run.benchmark.steps[at.number]))

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run = phase.at, phase.at.run
        previous = run.previous(at.chain, at.number)
        assert previous is not None
        means = means_of(
            phase=phase,
            executor=executor,
            model=previous,
            samples=run.benchmark.step_samples(at.number, all_so_far=False),
            span=(run.benchmark.row_ends[at.number - 1], run.benchmark.row_ends[at.number]),
            unit=True,
        )
        # by one process and from all old rows, so that no number depends on how many ranks train
        rows = imprinted(means, previous.sharded_rows(Ranks()).weight.detach())
        run.fence.check()
        write_class_means(phase.output.path, rows, previous.fingerprint)
        shutil.rmtree(part_of(phase))
        return f"{len(rows):,} rows"
