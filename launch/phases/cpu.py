"""The phases that CPU actors do: neighbourhoods, prototypes, evaluation."""

import shutil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.files import write_json
from data_shards.pipeline import image_size
from data_shards.storage.neighbours import VIEWS, TeacherCache, teacher_file
from launch.execution.executor import Crew
from launch.inference.embed import neighbour_examples, units
from launch.inference.test_sets import Embedding, Measurement
from launch.phases.planning import Phase
from launch.runs.run import Run
from monitoring.records import evaluation
from monitoring.results import figures
from trainer.arrays import write_embeddings
from trainer.class_means import class_means, read_sums, write_class_means
from trainer.evaluation.incremental import so_far
from trainer.evaluation.protocol import (
    class_accuracies,
    evaluate,
    samples_to_embed,
    search_examples,
)
from trainer.heads.collectives import Ranks
from trainer.methods.wants import Answers
from trainer.model import Model

Ids = NDArray[np.int64]


class CpuPhases:
    """Does phases, each by spreading its units over a crew."""

    def __init__(self, run: Run, crew: Crew) -> None:
        self._run, self._crew = run, crew

    def neighbours(self, phase: Phase) -> str:
        run, config = self._run, self._run.config
        previous = run.previous(phase.chain, phase.step)
        assert previous is not None
        recipe = run.recipe(phase.chain, phase.step)
        wanted = recipe.want(Answers)
        assert wanted is not None
        samples = recipe.samples(run.benchmark, phase.step)
        views = VIEWS if config.data.augmentation.flip else VIEWS[:1]
        part = phase.output.with_name("neighbours.part")
        part.mkdir(parents=True, exist_ok=True)
        model, out = previous.folder.resolve(), part.resolve()
        calls = [
            (model, out, shard, view, own, wanted, config.data, config.teacher)
            for shard, own in units(run.dataset, samples)
            for view in views
            if not teacher_file(part, shard, view).exists()
        ]
        self._crew.map("neighbours", calls)
        if wanted.top_k is not None:
            cache = TeacherCache(
                part, len(run.dataset.manifest["shards"]), VIEWS[:1], previous.fingerprint
            )
            examples = neighbour_examples(
                run.dataset, run.benchmark, cache, samples, config.evaluation.examples
            )
            run.fence.check()
            write_json(phase.output.with_name("neighbour_examples.json"), examples)
        run.fence.check()
        shutil.rmtree(phase.output, ignore_errors=True)  # of other settings
        part.rename(phase.output)
        return ""

    def prototypes(self, phase: Phase) -> str:
        run, config = self._run, self._run.config
        anchor = run.anchor(phase.chain, phase.step)
        assert anchor is not None
        part = phase.output.with_name("prototypes.part")
        part.mkdir(parents=True, exist_ok=True)
        model = anchor.folder.resolve()
        row_of = run.benchmark.row_of_identity[run.dataset.identity]
        first, last = run.class_mean_rows(phase.chain, phase.step)
        samples = run.benchmark.step_samples(phase.step, all_so_far=True)
        shards = units(run.dataset, samples[row_of[samples] >= first])
        files = [part.resolve() / f"shard-{shard:05d}.safetensors" for shard, _ in shards]
        calls = [
            (model, file, own, row_of[own], config.data, config.teacher)
            for file, (_, own) in zip(files, shards, strict=True)
            if not file.exists()
        ]
        self._crew.map("prototypes", calls)
        sums = (read_sums(file, anchor.fingerprint) for file in files)
        means = class_means(sums, first, last)
        run.fence.check()
        write_class_means(phase.output, means, anchor.fingerprint)
        shutil.rmtree(part)
        return f"{len(means):,} rows"

    def evaluate(self, phase: Phase) -> str:
        run, config = self._run, self._run.config
        model = Model.open(phase.output.parent / "model")
        samples = samples_to_embed(run.benchmark)
        calls = [
            (model.folder.resolve(), own, config.data, config.teacher.batch)
            for _, own in units(run.dataset, samples)
        ]
        none = np.empty((0, model.settings.dimension), dtype=np.float32)
        embeddings = np.concatenate([none, *self._crew.map("embed", calls)])
        run.fence.check()
        write_embeddings(
            phase.output.with_name("embeddings.safetensors"), samples, embeddings, model.fingerprint
        )
        given = (run.dataset, run.benchmark, samples, embeddings, config.evaluation)
        write_json(phase.output.with_name("examples.json"), search_examples(*given))
        measured = evaluate(*given) | self._by_task(phase, model, samples, embeddings)
        if run.test_sets:
            scratch = phase.output.with_name(f"held-out-{phase.fingerprint}")
            size = image_size(run.dataset, config.data)
            data = config.data.model_copy(update={"image_size": size})
            vectors = Embedding(model.folder, data, config.teacher.batch, self._crew.map)
            measurement = Measurement(vectors, scratch, self._crew.map)
            measured["tests"] = measurement.measure(run.test_sets)
        run.fence.check()
        write_json(phase.output, measured)
        shown = list(figures(measured).values())[:2]
        return ", ".join(f"{title} {value:.1%}" for title, value in shown)

    def _by_task(
        self, phase: Phase, model: Model, samples: Ids, embeddings: NDArray[np.float32]
    ) -> dict[str, Any]:
        """Accuracy on each step's classes, and what earlier steps' say of it; see `so_far`.

        Empty where the benchmark names no such images, or the classifier knows other classes.
        """
        run, step = self._run, phase.step
        if (
            not run.benchmark.classified
            or model.adopted
            or model.rows != run.benchmark.row_ends[step]
        ):
            return {}
        directions = model.frozen_rows(Ranks()).weight.detach().float().numpy()
        given = (run.dataset, run.benchmark, step, samples, embeddings, directions)
        earlier = [
            evaluation(run.step_folder(phase.chain, past) / "evaluation.json")
            for past in range(step)
        ]
        accuracies = [*(found.get("tasks", []) for found in earlier), class_accuracies(*given)]
        return so_far(accuracies, run.benchmark.row_ends) if all(accuracies) else {}
