"""Deciding by the largest probability over heads: where each learning step's classes end."""

from typing import Any

import torch

from launch.execution.executor import Executor
from launch.phases.kind import Kind, Output, Phase, Step
from monitoring.run_folder import DECISION_FOLDER
from trainer.checkpoint import save_folder
from trainer.decisions import LargestOfHeads, decision_files
from trainer.heads.collectives import Ranks
from trainer.model import Model


class Heads(Kind[LargestOfHeads]):
    """The classes of every learning step so far."""

    name = "head-ends"
    where = "driver"
    makes_decision = True

    def wants(self, at: Step) -> tuple[LargestOfHeads, ...]:
        rule = at.run.rule(at.chain)
        return (rule,) if isinstance(rule, LargestOfHeads) else ()

    def inputs(self, at: Step, want: LargestOfHeads) -> tuple[Phase, ...]:
        return (at.model,)

    def decides(self, at: Step, want: LargestOfHeads) -> Any:
        return list(at.run.benchmark.row_ends[: at.number + 1])

    def output(self, at: Step, want: LargestOfHeads) -> Output:
        return Output(at.folder / DECISION_FOLDER)

    def work(self, phase: Phase, executor: Executor) -> str:
        ends = torch.tensor(self.decides(phase.at, phase.want))
        model = Model.open(phase.at.model.output.path)
        files, card = decision_files(phase.want, {"ends": ends}, model)
        save_folder(phase.output.path, files, card, Ranks(), phase.at.run.fence.check)
        return f"{len(ends)} heads"
