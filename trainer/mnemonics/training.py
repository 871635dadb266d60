"""Optimising a group of exemplars to the end: from where it was stopped, and heard of meanwhile."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from monitoring.metrics import Metrics
from trainer.activity import Activity
from trainer.arrays import read_arrays, write_arrays
from trainer.checkpoint import Fence, unfenced
from trainer.divergence import Diverged
from trainer.mnemonics.optimisation import Optimisation
from trainer.mnemonics.settings import MnemonicsSettings
from trainer.mnemonics.unrolled import rounded

_SECONDS = 5.0
"""Between reports, at least."""
_SAVED_EVERY = 600.0
"""Seconds between savings of unfinished work, at least."""


@dataclass(frozen=True, kw_only=True)
class MnemonicsSpec:
    """A group to be optimised."""

    optimisation: Optimisation
    """At its beginning."""
    settings: MnemonicsSettings
    unfinished: Path
    """The file that its unfinished work is kept in."""
    origin: str
    """Names the result: unfinished work of another one is not gone on with."""
    fence: Fence = unfenced
    before: int = 0
    """Updates of groups before it, for progress: this one's are counted behind them."""
    of: int | None = None
    """In all, if that is not the end of this one."""


def optimise(
    spec: MnemonicsSpec,
    metrics: Metrics,
    report: Callable[[dict[str, Any]], None],
    activity: Activity,
) -> dict[str, NDArray[Any]] | None:
    """The group's images [n, 3, H, W] uint8 under ``pixels``, and its verdict.

    None where `activity` asked for a stop: what was done is then in the file of unfinished work,
    and so it is now and then, for a process that is killed. Raises Diverged where the temporary
    model diverges.
    """
    work = spec.optimisation
    if spec.unfinished.exists():
        needs = ("images", "moments", "done")
        work.restore(read_arrays(spec.unfinished, spec.origin, needs))
    of = spec.before + work.total if spec.of is None else spec.of
    saved = since = time.monotonic()
    last = work.done
    while work.done < work.total:
        activity.turn("forward")
        loss = work.update()
        _check(work, loss, spec)
        now = time.monotonic()
        if activity.stop.is_set() or now - saved > _SAVED_EVERY:
            activity.turn("saving a checkpoint")
            spec.fence()
            write_arrays(spec.unfinished, work.state(), spec.origin)
            saved = now
        if activity.stop.is_set():
            return None
        metrics.iteration.set(spec.before + work.done)
        metrics.iterations.inc()
        metrics.loss.set(loss)
        if now - since > _SECONDS or work.done == work.total:
            seconds, count = now - since, work.done - last
            since, last = now, work.done
            metrics.iteration_seconds.observe(seconds / count)
            report(
                {
                    "iteration": spec.before + work.done,
                    "of": max(of, spec.before + work.done),
                    "iterations": count,
                    "seconds": seconds,
                    "images_per_second": spec.settings.batch * count / max(seconds, 1e-9),
                    "data_wait_share": 0.0,
                    "loss": loss,
                }
            )
    activity.turn("judging")
    verdict = {name: np.array([value]) for name, value in work.verdict().items()}
    return {"pixels": rounded(work.images).cpu().numpy(), **verdict}


def _check(work: Optimisation, loss: float, spec: MnemonicsSpec) -> None:
    """Raises Diverged when numbers are no longer finite."""
    if not (math.isfinite(loss) and bool(torch.isfinite(work.images).all())):
        raise Diverged(
            f"exemplars cannot be learned: the loss of a model trained on them was {loss:g} in "
            f"update {work.done}. Lower mnemonics.inner_rate = {spec.settings.inner_rate:g}, or "
            f"mnemonics.inner_steps = {spec.settings.inner_steps}, of the method's memory, in "
            "another --out"
        )
