"""Plans a run's memory, messages, disk and time, without data, GPUs or other machines."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.settings import InputError
from data_shards.splits.holding_out import check_held
from data_shards.storage.neighbours import VIEWS
from launch.config.run import RunConfig
from launch.planning.efforts import Actor, PhasePlan, plan_phases
from launch.planning.hardware import Machine
from launch.planning.split import Split
from launch.runs.continuing import first_model
from launch.runs.run import check_steps
from launch.runs.single_classes import untaught
from monitoring.run_folder import chain_name
from trainer.adopted import AdoptedSettings
from trainer.backbones import EmbedderSettings
from trainer.checkpoint.policy import superfluous
from trainer.decisions import NearestMean
from trainer.dry_run import Operation
from trainer.footprint import (
    Calls,
    EmbedderFootprint,
    HeadFootprint,
    embedder_footprint,
    head_footprint,
    images_by_rank,
    online_teacher_operations,
    rows_by_rank,
    saved_bytes,
)
from trainer.heads.margin_loss import ClassifierSettings
from trainer.methods import Method
from trainer.methods.discriminative import Expert
from trainer.methods.recipe import Recipe
from trainer.methods.wants import Answers
from trainer.model import Model
from trainer.optimizers import TrainingSettings, schedule
from trainer.row_layout import row_blocks


@dataclass(frozen=True)
class StepPlan:
    """One learning step of all methods that train it alike. Sizes in bytes, of the fullest rank."""

    methods: tuple[str, ...]
    step: int
    old_identities: int
    new_identities: int
    images: int
    """Training images."""
    exemplars: int
    """Those of them that are of earlier steps' memory."""
    iterations: int
    fine_tuning: int
    """Iterations on the memory alone, behind these."""
    epochs: float
    rows_by_rank: tuple[int, ...]
    images_by_rank: tuple[int, ...]
    """Of each global batch."""
    memory: dict[str, int]
    """Bytes by kind; ``peak`` is the most at one time, which is less than their sum."""
    calls: dict[str, dict[str, int]]
    """Collectives of an iteration: ``calls`` and ``bytes`` that each rank sends."""
    disk: dict[str, int]
    seconds: dict[str, float] | None
    """Lower bounds: ``compute`` and ``communication`` of an iteration, ``step`` in all."""


@dataclass(frozen=True)
class KeptPlan:
    """The memory that a learning step of a method leaves for the next."""

    method: str
    step: int
    images: int
    """At most: an identity may have fewer than its share."""
    pixel_bytes: int
    """Of the same as pixels, three bytes each; encoded images are smaller."""


@dataclass(frozen=True)
class Plan:
    """A run's learning steps, for one seed."""

    world: int
    seeds: int
    machine: Machine | None
    shards: int | None
    tested: int | None
    """Test images in the dataset, which evaluation after each step runs on; none: not known."""
    steps: list[StepPlan]
    exemplars: list[KeptPlan]
    """Of methods with a memory."""
    phases: list[PhasePlan]
    """Beside the trainings of steps."""
    notes: list[str]
    """What a run would say of its learning steps before it begins."""

    def values(self) -> dict[str, Any]:
        """The plan as plain values."""
        return asdict(self)


def plan_run(
    config: RunConfig, split: Split, machine: Machine | None, actor: Actor | None = None
) -> Plan:
    """Plans every learning step on ranks that are such a `machine`, and on CPU actors like `actor`.

    Raises InputError for whatever a run would refuse.
    """
    planner = _Planner(config, split, machine)
    check_steps(split.row_ends, split.images, config.cluster.workers, bool(planner.given))
    steps = [step for number in range(len(split.row_ends)) for step in planner.steps(number)]
    if not steps:
        raise InputError("there is nothing to plan: step 0 is adopted, and benchmark.steps is 1")
    return Plan(
        world=planner.world,
        seeds=len(config.seeds),
        machine=machine,
        shards=split.shards,
        tested=split.tested,
        steps=steps,
        exemplars=list(_kept(config, split)),
        phases=list(plan_phases(config, split, machine, actor)),
        notes=list(untaught(config.methods, split.row_ends, bool(planner.given))),
    )


def _kept(config: RunConfig, split: Split) -> Iterator[KeptPlan]:
    """What every step of every method with a memory leaves."""
    height, width = split.size
    for name, method in config.methods.items():
        memory = method.recipe().memory
        for step in range(len(split.row_ends)) if memory is not None else ():
            assert memory is not None
            images = memory.count(split.images, split.row_ends, step + 1)
            yield KeptPlan(name, step, images, 3 * height * width * images)


@dataclass(frozen=True)
class _Trained:
    """The properties by which methods are grouped into one plan."""

    recipe: Recipe
    embedder: EmbedderSettings
    old_embedder: EmbedderSettings | AdoptedSettings
    """The network of the model of the step before."""
    classifier: ClassifierSettings
    lessons: TrainingSettings
    """What its schedule is made of."""


def _given(config: RunConfig) -> dict[str, EmbedderSettings | AdoptedSettings]:
    """The network of step 0 of each method, if it is given; empty if step 0 is trained."""
    if config.adopted is not None:
        return dict.fromkeys(config.methods, Model.open(config.adopted).settings)
    if config.continues is None:
        return {}
    seed = config.seeds[0]
    first = {name: first_model(config, Path(), chain_name(name, seed)) for name in config.methods}
    return {name: Model.open(folder).settings for name, folder in first.items()}


class _Planner:
    """Plans one step after the other."""

    def __init__(self, config: RunConfig, split: Split, machine: Machine | None) -> None:
        self.world = max(1, config.cluster.workers)
        self._config, self._split, self._machine = config, split, machine
        self._online = config.teacher.mode == "online"
        self.given = _given(config)
        if config.adopted and self._online:
            raise InputError(
                "what an adopted model costs when it is asked in training is not known: plan with "
                "teacher.mode=cached"
            )

    def steps(self, step: int) -> Iterator[StepPlan]:
        """The plans of a learning step, one for each group of methods that train it alike.

        There is none for a step 0 that is given.
        """
        if step == 0 and self.given:
            return
        groups: dict[_Trained, list[str]] = {}
        for name, method in self._config.methods.items():
            usual, loss = self._config.embedder, self._config.classifier
            trained = _Trained(
                recipe=method.recipe().at(
                    step, self._old(step), new_rows=self._split.row_ends[step] - self._old(step)
                ),
                embedder=method.network(usual, step),
                old_embedder=self._old_embedder(name, method, step),
                classifier=method.loss(loss, step),
                lessons=method.lessons(self._config.training),
            )
            groups.setdefault(trained, []).append(name)
        for trained, methods in groups.items():
            yield self._step(step, trained, tuple(methods))

    def _old_embedder(
        self, name: str, method: Method, step: int
    ) -> EmbedderSettings | AdoptedSettings:
        if step == 1 and self.given:
            return self.given[name]
        return method.network(self._config.embedder, max(0, step - 1))

    def _old(self, step: int) -> int:
        return self._split.row_ends[step - 1] if step else 0

    def _step(self, step: int, trained: "_Trained", methods: tuple[str, ...]) -> StepPlan:
        split, world = self._split, self.world
        recipe, dimension = trained.recipe, trained.embedder.dimension
        old, last = self._old(step), split.row_ends[step]
        if recipe.hold_out:
            none = np.empty(0, dtype=np.int64)
            where = f"learning step {step} of {', '.join(methods)}"
            check_held(none, recipe.held_each(old), none.astype(object), where)
        images, memory = recipe.count(split.images, split.row_ends, step), recipe.memory
        training = schedule(trained.lessons, images, recipe.sees_all, split.row_ends, step)
        fine_tuning = 0
        if recipe.fine_tune is not None and memory is not None:
            kept = memory.count(split.images, split.row_ends, step + 1)
            again = recipe.fine_tune.lessons(trained.lessons)
            fine_tuning = schedule(again, kept, False, split.row_ends, step).iterations
        head = head_footprint(
            *(recipe, old, last, dimension, trained.old_embedder.dimension),
            *(trained.classifier, training, self._online, world),
            embedder=trained.embedder,
            size=split.size,
        )
        given = split.size, training, world
        embedder = embedder_footprint(trained.embedder, *given, recipe.enters)
        asking = list[Operation]()
        if self._online and recipe.want(Expert) is not None:
            asking += online_teacher_operations(trained.embedder, *given)
        if recipe.runs_previous(self._online):
            assert isinstance(trained.old_embedder, EmbedderSettings)
            asking += online_teacher_operations(trained.old_embedder, *given)
        saved = saved_bytes(
            recipe=recipe, old=old, last=last, dimension=dimension, training=training
        )
        calls = {**embedder.calls, **head.calls}
        blocks = row_blocks(recipe, old, last).values()
        owned = zip(*(rows_by_rank(b.rows.start, b.rows.stop, world) for b in blocks), strict=True)
        return StepPlan(
            methods=methods,
            step=step,
            old_identities=old,
            new_identities=last - old,
            images=images,
            exemplars=memory.count(split.images, split.row_ends, step) if memory else 0,
            iterations=training.iterations,
            fine_tuning=fine_tuning,
            epochs=training.iterations * training.batch / images,
            rows_by_rank=tuple(map(sum, owned)),
            images_by_rank=tuple(images_by_rank(training.batch, world)),
            memory=self._memory(head, embedder, recipe, training.batch),
            calls=_sent(calls, world),
            disk=self._disk(
                saved=saved,
                embedder=embedder,
                trained=trained,
                training=training,
                old=old,
                last=last,
                images=images,
                prepared=head.prepared,
            ),
            seconds=self._seconds(
                [*embedder.operations, *asking], head, calls, training.iterations + fine_tuning
            ),
        )

    def _memory(
        self, head: HeadFootprint, embedder: EmbedderFootprint, recipe: Recipe, batch: int
    ) -> dict[str, int]:
        beside = recipe.runs_previous(self._online)
        expert = self._online and recipe.want(Expert) is not None
        height, width = self._split.size
        images = max(images_by_rank(batch, self.world))
        lasting = {
            "embedder": embedder.parameters,
            "embedder optimiser": embedder.optimizer,
            "rows": head.rows,
            "row optimiser": head.optimizer,
            "loaded for losses": head.loaded,
            "previous model": head.frozen + embedder.parameters * beside,
            "expert network": embedder.parameters * expert,
            "images": 3 * height * width * images * (1 + self._config.data.prefetch),
        }
        # DeepSpeed copies the gradients into one bucket before it averages them
        buffers = embedder.gradients * (1 if self.world == 1 else 2)
        passing = {
            "activations": embedder.activations,
            "embedder gradients": buffers,
            "logits": head.peak - head.gradients,
            "row gradients": head.gradients,
        }
        most = max(
            embedder.activations + head.peak,
            embedder.peak + head.gradients,
            buffers + head.gradients,
        )
        return {**lasting, **passing, "peak": sum(lasting.values()) + most}

    def _disk(
        self,
        saved: tuple[int, int],
        embedder: EmbedderFootprint,
        trained: "_Trained",
        training: TrainingSettings,
        old: int,
        last: int,
        images: int,
        prepared: int,
    ) -> dict[str, int]:
        (rows, trained_rows), wanted = saved, trained.recipe.want(Answers)
        checkpoint = embedder.parameters + embedder.saved_optimizer + trained_rows
        made = [*range(0, training.iterations + 1, training.checkpoint_every)][1:]
        kept = len(made) - len(superfluous(made, training.keep_checkpoints, training.keep_every))
        # old ones are deleted after a new one is complete
        number = min(kept + 1, len(made))
        disk = {"model": embedder.parameters + rows, "checkpoints": number * checkpoint}
        if prepared:  # the step leaves as much for the next one
            disk["loaded for losses"] = prepared
        if isinstance(trained.recipe.predict, NearestMean):
            disk["class means"] = 4 * last * trained.embedder.dimension
        views = len(VIEWS) if self._config.data.augmentation.flip else 1
        if wanted is not None and not self._online:
            answer = 4 * trained.old_embedder.dimension if wanted.embeddings else 0
            answer += 8 * min(wanted.top_k or 0, old)
            disk["neighbourhoods"] = views * images * (8 + answer)
        if (expert := trained.recipe.want(Expert)) is not None:
            told = expert.classes(old)
            model = embedder.parameters + 4 * told * trained.embedder.dimension
            answers = 0 if self._online else views * images * (8 + 4 * trained.embedder.dimension)
            disk["expert, for a while"] = 2 * model + answers
        return disk

    def _seconds(
        self,
        embedding: Sequence[Operation],
        head: HeadFootprint,
        calls: Calls,
        iterations: int,
    ) -> dict[str, float] | None:
        if self._machine is None:
            return None
        compute = self._machine.compute_seconds(embedding)
        # rows are run dry in the CPU's small blocks: a GPU starts fewer kernels for them
        started = not self._config.cluster.gpu
        compute += self._machine.compute_seconds(head.operations, started)
        every = [call for made in calls.values() for call in made]
        communication = self._machine.communication_seconds(every, self.world)
        return {
            "compute": compute,
            "communication": communication,
            "step": iterations * (compute + communication),
        }


def _sent(calls: Calls, world: int) -> dict[str, dict[str, int]]:
    return {
        what: {"calls": len(made), "bytes": round(sum(call.sent(world) for call in made))}
        for what, made in calls.items()
        if made
    }
