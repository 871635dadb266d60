"""What a kind of phase is: one file each beside this one, and one line in `registry`.

A phase is one resumable unit of a learning step: it reads what earlier phases left, and leaves
files of its own. Everything that shows, counts or plans phases asks their kind; nothing else knows
which kinds there are.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

from data_shards.files import fingerprint
from launch.execution.executor import Executor
from launch.runs.run import Chain, Run
from monitoring.run_folder import LABEL, step_name
from monitoring.schemas import PlannedPhase
from trainer.dry_run import Operation
from trainer.methods.recipe import Recipe

W = TypeVar("W")
Where = Literal["actors", "ranks", "driver"]
"""Who does a phase's work: CPU actors, the training ranks, or the driver alone."""


@dataclass(frozen=True, eq=False)
class Step:
    """One learning step of a chain, and the phases that it wants."""

    run: Run
    chain: Chain
    number: int
    kinds: "tuple[Kind[Any], ...]"
    """All there are, in the order of their phases."""
    _made: "dict[tuple[Chain, int], Step]" = field(default_factory=dict, repr=False)
    """Every step of the run that was asked for, so that each is planned once."""

    def at(self, number: int, chain: Chain | None = None) -> "Step":
        """Another step of this chain, or of another one."""
        key = chain or self.chain, number
        if key not in self._made:
            self._made[key] = Step(self.run, *key, self.kinds, self._made)
        return self._made[key]

    @property
    def name(self) -> str:
        """Names it in the ledger and in messages: METHOD/seed-S/step-T."""
        return step_name(self.chain.name, self.number)

    @property
    def folder(self) -> Path:
        """Where its outputs go."""
        return self.run.step_folder(self.chain, self.number)

    @property
    def recipe(self) -> Recipe:
        """The chain's recipe as it applies here."""
        return self.run.recipe(self.chain, self.number)

    @cached_property
    def phases(self) -> "tuple[Phase, ...]":
        """Its phases, in their order."""
        return tuple(Phase(k, self, want) for k in self.kinds for want in k.wants(self))

    @property
    def model(self) -> "Phase":
        """The phase that makes the model which the step leaves."""
        return [phase for phase in self.phases if phase.kind.makes_model][-1]

    def model_before(self, kind: "type[Kind[Any]]") -> "Phase":
        """The phase that makes the model which the step has when one of this `kind` comes."""
        order = [type(own) for own in self.kinds]
        earlier = set(order[: order.index(kind)])
        made = [p for p in self.phases if p.kind.makes_model and type(p.kind) in earlier]
        return made[-1]

    @property
    def memory(self) -> "Phase | None":
        """The phase that makes the exemplars which the step leaves, if it leaves any."""
        made = [phase for phase in self.phases if phase.kind.makes_memory]
        return made[-1] if made else None

    @property
    def decision(self) -> "Phase | None":
        """The phase that makes what its decision rule needs, if that needs anything."""
        return next((phase for phase in self.phases if phase.kind.makes_decision), None)


@dataclass(frozen=True)
class Effort:
    """What a phase takes, where nothing of it is done yet; a step's main training is planned from
    its recipe instead."""

    step: int = 0
    """The learning step whose model is run by CPU actors."""
    forward: int = 0
    """Images that go through it. Repeated ones, which fill a last batch, are not counted."""
    backward: int = 0
    """Backward passes to the gradients of all weights, of one image each."""
    turns: float = 0.0
    """How often the training ranks compute `turn`."""
    turn: tuple[Operation, ...] = ()
    """On the fullest rank."""
    peak: int = 0
    """Bytes that this rank holds at most meanwhile; 0: less than in the step's training."""


@dataclass(frozen=True)
class Output:
    """The files or folders that a finished phase leaves."""

    path: Path
    beside: tuple[str, ...] = ()
    """Names of what it also leaves in the same folder."""
    optional: tuple[str, ...] = ()
    """The same, where runs of earlier versions left none: nothing needs it."""

    @property
    def needed(self) -> list[Path]:
        """All that later phases need: without it the phase is not finished."""
        return [self.path, *map(self.path.with_name, self.beside)]

    @property
    def complete(self) -> bool:
        """Whether all that later phases need is there."""
        return all(path.exists() for path in self.needed)

    @property
    def every(self) -> list[Path]:
        """All of it; the path itself last, so that a copy which has it is whole."""
        return [*map(self.path.with_name, (*self.beside, *self.optional)), self.path]


class Kind(ABC, Generic[W]):
    """One kind of phase, for wants of one type (None where a step has such a phase anyway)."""

    name: ClassVar[str]
    """In the ledger, in phases' names and for people: never renamed once released."""
    version: ClassVar[int] = 1
    """Raised when the same inputs give another result than before: phases are then done anew."""
    where: ClassVar[Where]
    only_prepares: ClassVar[bool] = False
    """Its output is read by later phases of its step alone: nobody needs it once they are done."""
    prepares_next: ClassVar[bool] = False
    """Its output is what the training of the step after wants, of the phase's want."""
    implied: ClassVar[bool] = False
    """A training's fingerprint does not name it: its result follows from the training's recipe and
    the models before. For kinds that were released before kinds had versions."""
    makes_model: ClassVar[bool] = False
    """Its output is the step's model, as far as it is trained by then; the last such phase's is
    what the step leaves."""
    makes_memory: ClassVar[bool] = False
    """Its output is the memory of exemplars that the step leaves, as far as it is made by then; the
    last such phase's is what the step leaves."""
    makes_decision: ClassVar[bool] = False
    """Its output is what the step's decision rule needs beside the model."""
    runs_teacher: ClassVar[bool] = False
    """It runs the previous model as `teacher` says."""

    def label(self, want: W) -> str:
        """Tells phases of one kind in one step apart; the kind's name where there is but one."""
        return self.name

    @abstractmethod
    def wants(self, at: Step) -> tuple[W, ...]:
        """What a step wants of this kind: a phase each."""

    @abstractmethod
    def inputs(self, at: Step, want: W) -> "tuple[Phase, ...]":
        """The phases whose outputs it reads."""

    @abstractmethod
    def decides(self, at: Step, want: W) -> Any:
        """What of the configuration and data decides its result, beside its inputs: JSON values."""

    @abstractmethod
    def output(self, at: Step, want: W) -> Output:
        """What it leaves."""

    @abstractmethod
    def work(self, phase: "Phase", executor: Executor) -> str:
        """Does it, or goes on with it; returns a few words on the result.

        Raises InputError, Preempted. The output must appear whole or not at all.
        """

    def identity(self, at: Step, want: W) -> Any:
        """What phases with the same result have in common: JSON values, hashed by `Phase`.

        Kinds that were released before this function keep the spelling that they had.
        """
        read = [phase.fingerprint for phase in self.inputs(at, want)]
        return [self.name, self.version, self.decides(at, want), read]

    def iterations(self, at: Step, want: W) -> int:
        """Training iterations that it takes, for the progress of the whole run."""
        return 0

    def effort(self, at: Step, want: W) -> Effort:
        """What it takes, for plans: from settings and the numbers of identities and images alone,
        since there may be no dataset."""
        return Effort()

    def temporary(self, want: W) -> bool:
        """Whether what it leaves is deleted when no phase that is still to do reads it."""
        return False

    def verdict(self, phase: "Phase") -> str | None:
        """Why the step's model may not be published, once `phase` is finished; empty: it may.

        None where this phase does not decide it.
        """
        return None


@dataclass(frozen=True, eq=False)
class Phase:
    """One phase of a run."""

    kind: Kind[Any]
    at: Step
    want: Any = None

    @cached_property
    def name(self) -> str:
        """Names it in the ledger."""
        label = self.kind.label(self.want)
        # before any work is done: a ledger that no reader takes would show only after it
        assert LABEL.fullmatch(label), f"{label!r} is no label of a phase"
        return f"{self.at.name}/{label}"

    @cached_property
    def fingerprint(self) -> str:
        """Equal for phases with the same result."""
        return fingerprint(self.kind.identity(self.at, self.want))

    @cached_property
    def output(self) -> Output:
        """What it leaves."""
        return self.kind.output(self.at, self.want)

    @cached_property
    def inputs(self) -> "tuple[Phase, ...]":
        """The phases whose outputs it reads."""
        return self.kind.inputs(self.at, self.want)

    @property
    def iterations(self) -> int:
        """Training iterations that it takes."""
        return self.kind.iterations(self.at, self.want)

    @property
    def effort(self) -> Effort:
        """What it takes, for plans."""
        return self.kind.effort(self.at, self.want)

    @property
    def planned(self) -> PlannedPhase:
        """What the run folder says of it before it is done."""
        folder = self.at.run.folder
        return {
            "phase": self.name,
            "fingerprint": self.fingerprint,
            "kind": self.kind.name,
            "outputs": [str(path.relative_to(folder)) for path in self.output.needed],
            "inputs": [phase.name for phase in self.inputs],
            "only_prepares": self.kind.only_prepares,
        }

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the ledger says of it, beside times."""
        return {
            "phase": self.name,
            "fingerprint": self.fingerprint,
            "output": str(self.output.path.relative_to(self.at.run.folder)),
            "kind": self.kind.name,
            "where": self.kind.where,
            "method": self.at.chain.method,
            "seed": self.at.chain.seed,
            "step": self.at.number,
        }
