"""The gate: only models that are compatible with the step before are published."""

import shutil
from pathlib import Path

from launch.phases.kind import Phase
from launch.runs.ledger import Ledger
from launch.runs.links import link
from launch.runs.run import Run
from monitoring.run_folder import decision_beside, published_model


def gated(run: Run) -> bool:
    """Whether the run publishes what is compatible, and nothing else."""
    settings = run.config.evaluation.compatibility
    return settings is not None and settings.gate


def update_published(run: Run, every: list[Phase], ledger: Ledger) -> list[str]:
    """Makes ``published/`` hold the models that may be there, of `every` phase of the run.

    Returns why others may not.

    Models share their bytes with the step's folder, and appear whole or not at all. The paragon's
    are never published, because nothing is asked of them.
    """
    settings = run.config.evaluation.compatibility
    assert settings is not None
    withheld = []
    for phase in every:
        done = ledger.has(phase.name, phase.fingerprint) and phase.output.path.exists()
        if not done or phase.at.chain.method == settings.paragon:
            continue
        why = phase.kind.verdict(phase)
        if why is None:
            continue
        run.fence.check()
        target = published_model(run.folder, phase.at.chain.name, phase.at.number)
        if why:
            withheld.append(why)
            shutil.rmtree(target, ignore_errors=True)
            shutil.rmtree(decision_beside(target), ignore_errors=True)
            continue
        # first, so that nobody finds the model and takes it for one without a decision
        _publish_decision(phase, target)
        model = phase.at.model.output.path
        if _manifest(target) != _manifest(model):
            link(model, target)
    return withheld


def _publish_decision(phase: Phase, target: Path) -> None:
    """Puts the decision of a step's model beside the model's own place, if it has one."""
    made, beside = phase.at.decision, decision_beside(target)
    if made is None:
        shutil.rmtree(beside, ignore_errors=True)
    elif _manifest(beside) != _manifest(made.output.path):
        link(made.output.path, beside)


def _manifest(model: Path) -> bytes | None:
    """What tells one model from another: the hashes of its files."""
    path = model / "manifest.json"
    return path.read_bytes() if path.exists() else None
