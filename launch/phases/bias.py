"""BiC's second stage: a line for the logits of the classes that a step has learned."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.storage.dataset import ShardDataset
from launch.execution.executor import Executor
from launch.inference.embed import units
from launch.inference.worker import embed_samples
from launch.phases.exemplars import exemplars_before
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from launch.runs.continuing import carried_decision
from launch.runs.links import link
from monitoring.run_folder import CORRECTIONS_FOLDER, DECISION_FOLDER
from trainer.bias import Sample, fit, samples_of, together
from trainer.checkpoint import save_folder
from trainer.decisions import BiasCorrected, Decision, decision_files
from trainer.heads.collectives import Ranks
from trainer.methods.bic import Corrections
from trainer.model import Model

Ids = NDArray[np.int64]
_LOGITS = 1 << 23
"""Most logits computed at a time."""


class CorrectionsBefore(Kind[Corrections]):
    """The lines of the steps before, for a training that goes on behind them."""

    name = "corrections"
    where = "driver"
    only_prepares = True

    def wants(self, at: Step) -> tuple[Corrections, ...]:
        want = at.recipe.want(Corrections) if at.number else None
        return () if want is None else (want,)

    def inputs(self, at: Step, want: Corrections) -> tuple[Phase, ...]:
        before = at.at(at.number - 1).decision
        assert before is not None, "its losses come with its rule"
        return (before,)

    def decides(self, at: Step, want: Corrections) -> Any:
        return []

    def output(self, at: Step, want: Corrections) -> Output:
        return Output(at.folder / CORRECTIONS_FOLDER)

    def work(self, phase: Phase, executor: Executor) -> str:
        (before,) = phase.inputs
        model = phase.at.run.previous(phase.at.chain, phase.at.number)
        assert model is not None
        Decision.open(before.output.path, model)
        link(before.output.path, phase.output.path)
        return ""


class Bias(Kind[BiasCorrected]):
    """alpha and beta of the step's classes, from the images held out of its training."""

    name = "bias-correction"
    where = "actors"
    makes_decision = True

    def wants(self, at: Step) -> tuple[BiasCorrected, ...]:
        rule = at.run.rule(at.chain)
        return (rule,) if isinstance(rule, BiasCorrected) else ()

    def inputs(self, at: Step, want: BiasCorrected) -> tuple[Phase, ...]:
        prepared = [p for p in at.phases if isinstance(p.kind, CorrectionsBefore)]
        return (at.model, *prepared, *exemplars_before(at))

    def decides(self, at: Step, want: BiasCorrected) -> Any:
        if not at.number:
            return []
        return [at.recipe.hold_out, want.decay, at.number, at.chain.seed]

    def output(self, at: Step, want: BiasCorrected) -> Output:
        return Output(at.folder / DECISION_FOLDER)

    def effort(self, at: Step, want: BiasCorrected) -> Effort:
        if not at.number:
            return Effort()
        benchmark = at.run.benchmark
        each = at.recipe.held_each(benchmark.rows_before(at.number))
        return Effort(at.number, each * benchmark.row_ends[at.number])

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run = phase.at, phase.at.run
        model = Model.open(at.model.output.path)
        if at.number:
            _, corrections, _ = phase.inputs
            alpha, beta = Corrections().load(corrections.output.path, Ranks(), torch.device("cpu"))
            line = fit(self._held_out(phase, executor, model, (alpha, beta)), phase.want.decay)
            said = f"{line[0]:.4f} z {line[1]:+.4f} for new classes"
        elif run.config.continues is not None:
            carried = carried_decision(run.config, at.chain.name)
            Decision.open(carried, model)
            link(carried, phase.output.path)
            return "as it was"
        else:
            alpha = beta = torch.empty(0, dtype=torch.float64)
            line, said = (1.0, 0.0), "nothing to correct"
        new = torch.ones(model.rows - len(alpha), dtype=torch.float64)
        prepared = {
            "alpha": torch.cat([alpha, line[0] * new]),
            "beta": torch.cat([beta, line[1] * new]),
        }
        files, card = decision_files(phase.want, prepared, model)
        save_folder(phase.output.path, files, card, Ranks(), run.fence.check)
        return said

    @staticmethod
    def _held_out(
        phase: Phase,
        executor: Executor,
        model: Model,
        lines: tuple[torch.Tensor, torch.Tensor],
    ) -> Sample:
        """What the held-out images' logits come down to."""
        at, run = phase.at, phase.at.run
        data, benchmark = run.joined_data(at.chain, at.number)
        held = run.held_out(at.chain, at.number, data, benchmark)
        rows = torch.from_numpy(benchmark.row_of_identity[data.identity[held]])
        vectors = _embedded(phase, executor, held, len(run.dataset))
        directions = model.frozen_rows(Ranks()).weight.detach().double()
        parts = max(1, len(held) * len(directions) // _LOGITS)
        return together(
            [
                samples_of(model.classifier.inputs(own) @ directions.T, labels, *lines)
                for own, labels in zip(
                    vectors.double().tensor_split(parts), rows.tensor_split(parts), strict=True
                )
            ]
        )


def _embedded(phase: Phase, executor: Executor, held: Ids, first: int) -> torch.Tensor:
    """The embeddings [n, d] of the samples `held` [n], ascending; those from `first` on are of the
    memory behind the dataset."""
    at, run, config = phase.at, phase.at.run, phase.at.run.config
    model, memory = at.model.output.path.resolve(), phase.inputs[-1].output.path.resolve()
    of_memory = ShardDataset.open(memory)
    parts = [
        (run.dataset, held[held < first], None),
        (of_memory, held[held >= first] - first, memory),
    ]
    calls = [
        (model, own, config.data, config.teacher.batch, where)
        for dataset, samples, where in parts
        for _, own in units(dataset, samples)
    ]
    # units have their samples ascending, and so have shards: the vectors are in held's order
    return torch.from_numpy(np.concatenate(executor.map(embed_samples, calls)))
