"""The phases of a run, and walking through them: each is done once, however often it stops."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.files import fingerprint, write_json
from data_shards.neighbours import VIEWS, TeacherCache, teacher_file
from data_shards.pipeline import image_size
from launch.adopting import take_adopted
from launch.folder import Chain, Run
from launch.held_out import Measurement
from launch.ledger import Ledger
from launch.neighbourhoods import neighbour_examples, units
from launch.pool import ActorPool
from launch.preemption import Preempted
from launch.training import TrainingPhases
from monitoring.progress import RunProgress
from monitoring.results import figures
from trainer.evaluation.protocol import evaluate, samples_to_embed, search_examples
from trainer.model import Model
from trainer.prototypes import class_means, read_sums, write_prototypes
from trainer.stored import write_embeddings


@dataclass(frozen=True)
class Phase:
    """One resumable unit of a learning step."""

    kind: str
    """``neighbours``, ``prototypes``, ``train`` (or ``adopt``) or ``evaluate``."""
    chain: Chain
    step: int
    fingerprint: str
    """Equal for phases with the same result."""
    output: Path
    """What must exist when it is done."""
    beside: tuple[str, ...] = ()
    """Files that it also leaves in the output's folder."""

    @property
    def name(self) -> str:
        """Names the phase in the ledger."""
        return f"{self.chain.name}/step-{self.step}/{self.kind}"


def phases(run: Run) -> list[Phase]:
    """Every phase of the run in order."""
    return [phase for chain in run.chains() for phase in _chain_phases(run, chain)]


def _chain_phases(run: Run, chain: Chain) -> Iterator[Phase]:
    deciding = run.config.deciding()
    for step in range(run.config.benchmark.steps):
        folder, trained = run.step_folder(chain, step), run.fingerprint(chain, step)
        recipe = run.recipe(chain, step)
        needs, data = recipe.needs, recipe.data
        past = run.fingerprint(chain, step - 1) if step else ""
        if step and needs.answers and run.config.teacher.mode == "cached":
            made = fingerprint(["neighbours", past, repr(needs), data, step, deciding["teacher"]])
            yield Phase("neighbours", chain, step, made, folder / "neighbours")
        if step and needs.prototypes:
            before = run.anchor_step(chain, step)
            of = [run.fingerprint(chain, before), run.prototype_rows(chain, step)]
            made = fingerprint(["prototypes", *of, step, deciding["teacher"]])
            yield Phase("prototypes", chain, step, made, folder / "prototypes.safetensors")
        kind = "train" if step or run.adopted is None else "adopt"
        yield Phase(kind, chain, step, trained, folder / "model")
        tests = [test.fingerprint for test in run.held_out.values()]
        tested = fingerprint(["evaluate", trained, deciding["evaluation"], *tests])
        beside = ("embeddings.safetensors", "examples.json")
        yield Phase("evaluate", chain, step, tested, folder / "evaluation.json", beside)


def pending(run: Run, ledger: Ledger) -> list[Phase]:
    """The phases still to do. What only prepares a training that is done is not needed."""
    every = phases(run)
    done = {p for p in every if ledger.has(p.name, p.fingerprint) and p.output.exists()}
    trained = {(p.chain, p.step) for p in done if p.kind == "train"}
    return [
        p
        for p in every
        if p not in done
        and not (p.kind in ("neighbours", "prototypes") and (p.chain, p.step) in trained)
    ]


def _link(source: Path, target: Path) -> None:
    """Makes `target` a copy of `source` that shares its bytes where the file system can."""
    part = target.with_name(f".{target.name}.link")
    part.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(part, ignore_errors=True)

    def copy(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)

    if source.is_dir():
        shutil.copytree(source, part, copy_function=copy)
        shutil.rmtree(target, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)
        copy(str(source), str(part))
    part.replace(target)


class Driver:
    """Walks a run's phases on a Ray cluster and records them in the ledger."""

    def __init__(
        self, run: Run, ledger: Ledger, ray: Any, progress: RunProgress, stop: threading.Event
    ) -> None:
        """`stop` is set to end the walk early, with nothing lost."""
        self._run, self._ledger, self._ray, self._progress = run, ledger, ray, progress
        config = run.config
        targets = run.folder / "targets"
        where = config.dataset_location(), config.data.cache, targets
        self._pool = ActorPool(ray, config.cluster, *where, stop, progress.units)
        self._stop = stop
        self._training: TrainingPhases | None = None

    def walk(self, todo: list[Phase]) -> None:
        """Does `todo` in order.

        Raises InputError with the workers' own words, Preempted when `stop` was set.
        """
        works: dict[str, Callable[[Phase], str]] = {
            "neighbours": self._neighbours,
            "prototypes": self._prototypes,
            "adopt": self._adopt,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        for phase in todo:
            if self._stop.is_set():
                raise Preempted(phase.name)
            self._progress.begin(phase.name)
            started = time.time()
            twin = self._ledger.twin(phase.fingerprint)
            source = self._run.folder / twin["output"] if twin else None
            if twin and source and source.exists() and source != phase.output:
                for name in (*phase.beside, phase.output.name):
                    if (file := source.with_name(name)).exists():
                        _link(file, phase.output.with_name(name))
                result = f"the same as {twin['phase']}"
            else:
                twin = None
                result = works[phase.kind](phase)
            self._ledger.add(
                {
                    "phase": phase.name,
                    "fingerprint": phase.fingerprint,
                    "output": str(phase.output.relative_to(self._run.folder)),
                    "kind": phase.kind,
                    "method": phase.chain.method,
                    "seed": phase.chain.seed,
                    "step": phase.step,
                    "started": started,
                    "finished": time.time(),
                    **({"same_as": twin["phase"]} if twin else {}),
                }
            )
            self._progress.end(result)

    # CPU phases

    def _neighbours(self, phase: Phase) -> str:
        run, config = self._run, self._run.config
        previous = run.previous(phase.chain, phase.step)
        assert previous is not None
        recipe = run.recipe(phase.chain, phase.step)
        samples = run.benchmark.step_samples(phase.step, recipe.data == "all")
        views = VIEWS if config.data.augmentation.flip else VIEWS[:1]
        part = phase.output.with_name("neighbours.part")
        part.mkdir(parents=True, exist_ok=True)
        model, out = previous.folder.resolve(), part.resolve()
        calls = [
            (model, out, shard, view, own, recipe.needs, config.data, config.teacher)
            for shard, own in units(run.dataset, samples)
            for view in views
            if not teacher_file(part, shard, view).exists()
        ]
        self._pool.map("neighbours", calls)
        if recipe.needs.neighbours is not None:
            cache = TeacherCache(
                part, len(run.dataset.manifest["shards"]), VIEWS[:1], previous.fingerprint
            )
            examples = neighbour_examples(
                run.dataset, run.benchmark, cache, samples, config.evaluation.examples
            )
            write_json(phase.output.with_name("neighbour_examples.json"), examples)
        part.rename(phase.output)
        return ""

    def _prototypes(self, phase: Phase) -> str:
        run, config = self._run, self._run.config
        anchor = run.anchor(phase.chain, phase.step)
        assert anchor is not None
        part = phase.output.with_name("prototypes.part")
        part.mkdir(parents=True, exist_ok=True)
        model = anchor.folder.resolve()
        row_of = run.benchmark.row[run.dataset.identity]
        first, last = run.prototype_rows(phase.chain, phase.step)
        samples = run.benchmark.step_samples(phase.step, all_so_far=True)
        shards = units(run.dataset, samples[row_of[samples] >= first])
        files = [part.resolve() / f"shard-{shard:05d}.safetensors" for shard, _ in shards]
        calls = [
            (model, file, own, row_of[own], config.data, config.teacher)
            for file, (_, own) in zip(files, shards, strict=True)
            if not file.exists()
        ]
        self._pool.map("prototypes", calls)
        sums = (read_sums(file, anchor.fingerprint) for file in files)
        means = class_means(sums, first, last)
        write_prototypes(phase.output, means, anchor.fingerprint)
        shutil.rmtree(part)
        return f"{len(means):,} rows"

    def _evaluate(self, phase: Phase) -> str:
        run, config = self._run, self._run.config
        model = Model.open(phase.output.parent / "model")
        samples = samples_to_embed(run.benchmark)
        calls = [
            (model.folder.resolve(), own, config.data, config.teacher.batch)
            for _, own in units(run.dataset, samples)
        ]
        none = np.empty((0, model.settings.dimension), dtype=np.float32)
        embeddings = np.concatenate([none, *self._pool.map("embed", calls)])
        write_embeddings(
            phase.output.with_name("embeddings.safetensors"), samples, embeddings, model.fingerprint
        )
        given = (run.dataset, run.benchmark, samples, embeddings, config.evaluation)
        write_json(phase.output.with_name("examples.json"), search_examples(*given))
        measured = evaluate(*given)
        if run.held_out:
            scratch = phase.output.with_name(f"held-out-{phase.fingerprint}")
            size = image_size(run.dataset, config.data)
            data = config.data.model_copy(update={"image_size": size})
            measurement = Measurement(
                model.folder, data, config.teacher.batch, scratch, self._pool.map
            )
            measured["tests"] = measurement.measure(run.held_out)
        write_json(phase.output, measured)
        shown = list(figures(measured).values())[:2]
        return ", ".join(f"{title} {value:.1%}" for title, value in shown)

    def _adopt(self, phase: Phase) -> str:
        model = take_adopted(self._run, phase.output)
        return f"{model.rows:,} rows"

    def _train(self, phase: Phase) -> str:
        self._pool.make_room(self._run.config.cluster.workers + 1)
        if self._training is None:
            self._training = TrainingPhases(self._run, self._ray, self._progress, self._stop)
        self._training.train(phase.name, phase.chain, phase.step)
        if not phase.output.exists():
            raise Preempted(phase.name)
        return ""
