"""The gate: only models that are compatible with the step before are published."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from launch.phases.planning import Phase, phases
from launch.runs.ledger import Ledger
from launch.runs.links import link
from launch.runs.run import Chain, Run
from monitoring.records import comparison


def gated(run: Run) -> bool:
    """Whether the run publishes what is compatible, and nothing else."""
    settings = run.config.evaluation.compatibility
    return settings is not None and settings.gate


def _published(run: Run, chain: Chain, step: int) -> Path:
    return run.folder / "published" / chain.name / f"step-{step}"


def _candidates(run: Run, ledger: Ledger) -> Iterator[Phase]:
    """The finished phases that decide on a model: evaluations of step 0, then comparisons."""
    settings = run.config.evaluation.compatibility
    assert settings is not None
    for phase in phases(run):
        decides = phase.kind == ("compatibility" if phase.step else "evaluate")
        done = ledger.has(phase.name, phase.fingerprint) and phase.output.exists()
        if decides and done and phase.chain.method != settings.paragon:
            yield phase


def verdict(phase: Phase) -> str:
    """Why the model of a finished comparison is withheld; empty when it may be published."""
    if not phase.step:
        return ""
    found = comparison(phase.output)
    if found["holds"]:
        return ""
    failed = [p["point"] for p in found["against"][-1]["points"] if not p["holds"]]
    return (
        f"{phase.chain.name}/step-{phase.step} is not published: not compatible with "
        f"step-{phase.step - 1} at {', '.join(failed)}"
    )


def update_published(run: Run, ledger: Ledger) -> list[str]:
    """Makes ``published/`` hold the models that may be there; returns why others may not.

    Models share their bytes with the step's folder, and appear whole or not at all. The paragon's
    are never published, because nothing is asked of them.
    """
    withheld = []
    for phase in _candidates(run, ledger):
        run.fence.check()
        target = _published(run, phase.chain, phase.step)
        if why := verdict(phase):
            withheld.append(why)
            shutil.rmtree(target, ignore_errors=True)
            continue
        model = phase.output.with_name("model")
        if _manifest(target) != _manifest(model):
            link(model, target)
    return withheld


def _manifest(model: Path) -> bytes | None:
    """What tells one model from another: the hashes of its files."""
    path = model / "manifest.json"
    return path.read_bytes() if path.exists() else None
