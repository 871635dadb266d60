"""Deciding by the nearest mean of exemplars: the means, under the step's finished model."""

from typing import Any

import numpy as np
import torch

from launch.execution.executor import Executor
from launch.inference.embed import units
from launch.inference.worker import embed_samples
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from launch.runs.run import Run
from monitoring.run_folder import DECISION_FOLDER
from trainer.checkpoint import save_folder
from trainer.decisions import NearestMean, decision_files
from trainer.exemplars import mean_directions
from trainer.heads.collectives import Ranks
from trainer.model import Model


class MeansOfExemplars(Kind[NearestMean]):
    """Each identity's mean, of its exemplars and, where training mirrors images, their mirror
    images (iCaRL, Alg. 1)."""

    name = "exemplar-means"
    where = "actors"
    makes_decision = True

    def wants(self, at: Step) -> tuple[NearestMean, ...]:
        rule = at.run.rule(at.chain)
        return (rule,) if isinstance(rule, NearestMean) else ()

    def inputs(self, at: Step, want: NearestMean) -> tuple[Phase, ...]:
        assert at.memory is not None, "a recipe that decides by one has it"
        return (at.model, at.memory)

    def decides(self, at: Step, want: NearestMean) -> Any:
        return [] if _mirrors(at.run) else ["not mirrored"]

    def output(self, at: Step, want: NearestMean) -> Output:
        return Output(at.folder / DECISION_FOLDER)

    def effort(self, at: Step, want: NearestMean) -> Effort:
        memory, benchmark = at.run.memory(at.chain), at.run.benchmark
        assert memory is not None
        images = [len(own) for own in benchmark.steps]
        kept = memory.count(images, benchmark.row_ends, at.number + 1)
        return Effort(at.number, kept * (1 + _mirrors(at.run)))

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run, config = phase.at, phase.at.run, phase.at.run.config
        memory = run.exemplars(at.chain, at.number)
        model, folder = at.model.output.path.resolve(), phase.inputs[1].output.path.resolve()
        shards, views = units(memory, np.arange(len(memory))), (False, True)[: 1 + _mirrors(run)]
        calls = [
            (model, samples, config.data, config.teacher.batch, folder, flipped)
            for flipped in views
            for _, samples in shards
        ]
        vectors = np.split(np.concatenate(executor.map(embed_samples, calls)), len(views))
        means = mean_directions([torch.from_numpy(own) for own in vectors], _rows(run, memory))
        files, card = decision_files(phase.want, {"means": means}, Model.open(model))
        save_folder(phase.output.path, files, card, Ranks(), run.fence.check)
        return f"{len(means):,} means"


def _mirrors(run: Run) -> bool:
    """Whether the model was trained on mirrored images: of others it may say anything."""
    return run.config.data.augmentation.flip


def _rows(run: Run, memory: Any) -> torch.Tensor:
    """The classifier row of each exemplar."""
    row_of = {name: row for row, name in enumerate(run.benchmark.names.tolist())}
    names = memory.names[memory.identity]
    return torch.tensor([row_of[name] for name in names.tolist()])
