"""The phases of a run: what each does, what identifies it, and which are still to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_shards.files import fingerprint
from launch.runs.ledger import Ledger
from launch.runs.run import Chain, Run
from trainer.methods.wants import Answers, ClassMeans


@dataclass(frozen=True)
class Phase:
    """One resumable unit of a learning step."""

    kind: str
    """``neighbours``, ``prototypes``, ``train`` (or ``adopt``), ``evaluate`` or
    ``compatibility``."""
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
    """Every phase of the run in order; a paragon's come before those that are compared with it."""
    compared, seeds = run.config.evaluation.compatibility, run.config.seeds
    chains = run.chains()
    if compared is not None:
        chains.sort(key=lambda c: (seeds.index(c.seed), c.method != compared.paragon))
    return [phase for chain in chains for phase in _chain_phases(run, chain)]


def _chain_phases(run: Run, chain: Chain) -> Iterator[Phase]:
    deciding = run.config.deciding()
    for step in range(run.config.learning_steps):
        folder, trained = run.step_folder(chain, step), run.fingerprint(chain, step)
        recipe = run.recipe(chain, step)
        past = run.fingerprint(chain, step - 1) if step else ""
        if step and recipe.want(Answers) and run.config.teacher.mode == "cached":
            asked = recipe.spelled_needs(), recipe.spelled_images()
            made = fingerprint(["neighbours", past, *asked, step, deciding["teacher"]])
            yield Phase("neighbours", chain, step, made, folder / "neighbours")
        if step and recipe.want(ClassMeans):
            before = run.anchor_step(chain, step)
            of = [run.fingerprint(chain, before), run.class_mean_rows(chain, step)]
            made = fingerprint(["prototypes", *of, step, deciding["teacher"]])
            yield Phase("prototypes", chain, step, made, folder / "prototypes.safetensors")
        kind = "train" if step or not run.given else "adopt"
        yield Phase(kind, chain, step, trained, folder / "model")
        tests = [test.fingerprint for test in run.test_sets.values()]
        tested = fingerprint(["evaluate", trained, deciding["evaluation"], *tests])
        beside = ("embeddings.safetensors", "examples.json")
        yield Phase("evaluate", chain, step, tested, folder / "evaluation.json", beside)
        if step and (compared := run.config.evaluation.compatibility) is not None:
            best = compared.paragon and run.fingerprint(Chain(compared.paragon, chain.seed), step)
            how = compared.model_dump(exclude={"gate", "paragon"}), run.config.evaluation.distance
            made = fingerprint(["compatibility", trained, best, *how])
            yield Phase("compatibility", chain, step, made, folder / "compatibility.json")


def pending(run: Run, ledger: Ledger) -> list[Phase]:
    """The phases still to do. What only prepares a training that is done is not needed."""
    every = phases(run)
    kept = run.config.evaluation.compatibility is not None  # runs of before kept no embeddings
    done = {
        p
        for p in every
        if ledger.has(p.name, p.fingerprint)
        and p.output.exists()
        and not (kept and any(not p.output.with_name(name).exists() for name in p.beside))
    }
    trained = {(p.chain, p.step) for p in done if p.kind == "train"}
    return [
        p
        for p in every
        if p not in done
        and not (p.kind in ("neighbours", "prototypes") and (p.chain, p.step) in trained)
    ]
