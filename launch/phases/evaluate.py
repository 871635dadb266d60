"""Testing a step's model: on identities never trained on, and on test sets of their own."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.files import write_json
from data_shards.pipeline import image_size
from launch.execution.executor import Executor
from launch.inference.embed import parts
from launch.inference.test_sets import Embedding, Measurement
from launch.inference.worker import embed_samples
from launch.phases.kind import Effort, Kind, Output, Phase, Step
from monitoring.records import evaluation
from monitoring.results import figures
from monitoring.run_folder import EMBEDDINGS_FILE, EVALUATION_FILE, EXAMPLES_FILE
from monitoring.schemas import MOST_TASKS
from trainer.arrays import write_embeddings
from trainer.decisions import Decision
from trainer.evaluation.incremental import confused, so_far, task_accuracy, task_confusion
from trainer.evaluation.protocol import (
    classify,
    evaluate,
    samples_to_embed,
    search_examples,
)
from trainer.model import Model

Ids = NDArray[np.int64]


class Evaluate(Kind[None]):
    """Embeds the test images, some hundred a unit, and measures."""

    name = "evaluate"
    where = "actors"

    def wants(self, at: Step) -> tuple[None, ...]:
        return (None,)

    def inputs(self, at: Step, want: None) -> tuple[Phase, ...]:
        return (at.model,) if at.decision is None else (at.model, at.decision)

    def decides(self, at: Step, want: None) -> Any:
        tests = [test.fingerprint for test in at.run.test_sets.values()]
        return [at.run.config.deciding()["evaluation"], *tests]

    def identity(self, at: Step, want: None) -> Any:
        read = [phase.fingerprint for phase in self.inputs(at, want)]
        return [self.name, read[0], *self.decides(at, want), *read[1:]]

    def output(self, at: Step, want: None) -> Output:
        left = (EMBEDDINGS_FILE, EXAMPLES_FILE)
        # runs of before kept no embeddings, which comparisons alone read
        compared = at.run.config.evaluation.compatibility is not None
        path = at.folder / EVALUATION_FILE
        return Output(path, beside=left) if compared else Output(path, optional=left)

    def effort(self, at: Step, want: None) -> Effort:
        # test sets of their own are not counted here: their embeddings are shared by steps
        return Effort(at.number, len(samples_to_embed(at.run.benchmark)))

    def work(self, phase: Phase, executor: Executor) -> str:
        at, run, config = phase.at, phase.at.run, phase.at.run.config
        output = phase.output.path
        model = Model.open(at.model.output.path)
        samples = samples_to_embed(run.benchmark)
        calls = [
            (model.folder.resolve(), own, config.data, config.teacher.batch)
            for _, own in parts(run.dataset, samples, config.teacher.batch)
        ]
        none = np.empty((0, model.settings.dimension), dtype=np.float32)
        embeddings = np.concatenate([none, *executor.map(embed_samples, calls)])
        run.fence.check()
        write_embeddings(output.with_name(EMBEDDINGS_FILE), samples, embeddings, model.fingerprint)
        given = (run.dataset, run.benchmark, samples, embeddings, config.evaluation)
        write_json(output.with_name(EXAMPLES_FILE), search_examples(*given))
        measured = evaluate(*given) | _by_step(at, model, samples, embeddings)
        if run.test_sets:
            scratch = output.with_name(f"held-out-{phase.fingerprint}")
            size = image_size(run.dataset, config.data)
            data = config.data.model_copy(update={"image_size": size})
            vectors = Embedding(model.folder, data, config.teacher.batch, executor.map)
            measurement = Measurement(vectors, scratch, executor.map)
            measured["tests"] = measurement.measure(run.test_sets)
        run.fence.check()
        write_json(output, measured)
        shown = list(figures(measured).values())[:2]
        return ", ".join(f"{title} {value:.1%}" for title, value in shown)

    def verdict(self, phase: Phase) -> str | None:
        return None if phase.at.number else ""  # there is no earlier model to be compatible with


def _by_step(
    at: Step, model: Model, samples: Ids, embeddings: NDArray[np.float32]
) -> dict[str, Any]:
    """Accuracy on each step's classes, and what earlier steps' say of it; see `so_far`. With it
    which step's classes images are taken for, and the bytes of the network and its rows.

    Empty where the benchmark names no such images, or the classifier knows other classes.
    """
    run, step = at.run, at.number
    ends = run.benchmark.row_ends[: step + 1]
    if not run.benchmark.classified or model.adopted or model.rows != ends[-1]:
        return {}
    made = at.decision
    decision = Decision() if made is None else Decision.open(made.output.path, model)
    classes = partial(decision.classes, model)
    answers = classify(run.dataset, run.benchmark, step, samples, embeddings, classes)
    earlier = [evaluation(at.at(past).folder / EVALUATION_FILE) for past in range(step)]
    accuracies = [found.get("tasks", []) for found in earlier]
    if answers is None or not all(accuracies):
        return {}
    accuracies.append(task_accuracy(*answers, ends).tolist())
    found = {**so_far(accuracies, run.benchmark.row_ends), "model_bytes": model.sizes()}
    if step < MOST_TASKS:
        found |= confused(task_confusion(*answers, ends))
    return found
