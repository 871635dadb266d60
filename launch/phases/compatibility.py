"""The compatibility of a learning step's model with every one before it, from stored embeddings."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.files import write_json
from launch.phases.planning import Phase
from launch.runs.run import Chain, Run
from trainer.arrays import read_embeddings
from trainer.evaluation.compatibility import CompatibilitySettings
from trainer.evaluation.compatibility.comparison import compare
from trainer.evaluation.compatibility.trials import Trials, of_benchmark
from trainer.evaluation.compatibility.vectors import Embedded
from trainer.model import Model

Map = Callable[[str, list[tuple[Any, ...]]], list[Any]]
"""Calls an actor's method with each of several arguments, and returns the results in order."""


def settings_of(run: Run) -> CompatibilitySettings:
    """How the run compares models; it must do so."""
    settings = run.config.evaluation.compatibility
    assert settings is not None
    return settings


def trials_of(run: Run) -> Trials:
    """The run's compatibility test.

    Raises InputError when it cannot tell an operating point that is asked for.
    """
    distance = run.config.evaluation.distance
    trials = of_benchmark(run.dataset, run.benchmark, distance, "the benchmark")
    trials.points(settings_of(run).at)
    return trials


def compare_step(run: Run, phase: Phase, spread: Map) -> str:
    """Compares a step's model with those of all steps before; a comparison is a unit of work.

    Writes ``compatibility.json``. The first and the previous step's have backfill curves.
    """
    settings, trials, step = settings_of(run), trials_of(run), phase.step
    paragon = settings.paragon and _stored(run, Chain(settings.paragon, phase.chain.seed), step)
    new = _stored(run, phase.chain, step)
    calls = [
        (
            compare_stored,
            trials,
            _stored(run, phase.chain, earlier),
            new,
            paragon,
            settings,
            run.dataset.names,
            earlier in (0, step - 1),
        )
        for earlier in range(step)
    ]
    against = [{"step": s, **found} for s, found in enumerate(spread("call", calls))]
    held = against[-1]["holds"]
    run.fence.check()
    write_json(phase.output, {"holds": held, "paragon": settings.paragon, "against": against})
    first, *_ = against[-1]["points"]
    gain = f"{first['point']} {100 * first['gain']['value']:+.1f} on step {step - 1}'s gallery"
    return f"{gain}, {'compatible' if held else 'not compatible'}"


def _stored(run: Run, chain: Chain, step: int) -> tuple[Path, str]:
    """A step's embeddings, and the fingerprint of the model that they must be of."""
    folder = run.step_folder(chain, step)
    model = Model.open(folder / "model")
    return (folder / "embeddings.safetensors").resolve(), model.fingerprint


def compare_stored(
    trials: Trials,
    old: tuple[Path, str],
    new: tuple[Path, str],
    paragon: tuple[Path, str] | None,
    settings: CompatibilitySettings,
    names: NDArray[np.object_],
    backfill: bool,
) -> dict[str, Any]:
    """`compare` of embeddings in files, each with the fingerprint of its model: a unit of work."""
    before, after = (Embedded(*read_embeddings(*stored)) for stored in (old, new))
    best = Embedded(*read_embeddings(*paragon)) if paragon else None
    return compare(trials, before, after, best, settings, names, backfill)
