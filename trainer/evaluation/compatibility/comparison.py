"""Compares two models: does the compatibility criterion hold, and what does the update change?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.compatibility import CompatibilitySettings
from trainer.evaluation.compatibility.backfill import curves
from trainer.evaluation.compatibility.bootstrap import interval, lower_bound, resampled
from trainer.evaluation.compatibility.figures import Figure
from trainer.evaluation.compatibility.flips import flips
from trainer.evaluation.compatibility.measures import measure
from trainer.evaluation.compatibility.trials import Trials
from trainer.evaluation.compatibility.vectors import Embedded

Floats = NDArray[np.float64]


def compare(
    trials: Trials,
    old: Embedded,
    new: Embedded,
    paragon: Embedded | None,
    settings: CompatibilitySettings,
    names: Sequence[str] | NDArray[np.object_],
    backfill: bool = True,
) -> dict[str, Any]:
    """M(old, old), M(new, old), M(new, new) and the paragon's M at each operating point; the
    criterion (Eq. 2 of the BCT paper), gains with intervals, negative flips, backfill curves.

    ``old_new`` is the opposite direction: queries of the old model in a gallery of the new one.
    `names` are the identities' by number; `backfill` includes the curves. Raises InputError for an
    operating point that `trials` cannot measure, and for embeddings that are NaN.
    """
    points = trials.points(settings.at)
    pairs = {
        "old_old": (old, old),
        "new_old": (new, old),
        "old_new": (old, new),
        "new_new": (new, new),
    }
    if paragon is not None:
        pairs["paragon"] = (paragon, paragon)
    outcomes = {key: measure(trials, *models, points) for key, models in pairs.items()}
    drawn = resampled(len(trials.identities), settings.resamples)
    compared = []
    for point in points:
        figures = {key: outcome.figure(point) for key, outcome in outcomes.items()}
        compared.append({"point": point.name, **judge(figures, drawn, settings.confidence)})
    identity, before = outcomes["old_old"].rights(points)
    _, after = outcomes["new_old"].rights(points)
    search, verified = trials.search, trials.pairs
    return {
        "points": compared,
        "holds": all(point["holds"] for point in compared),
        "confidence": settings.confidence,
        "resamples": settings.resamples,
        "identities": len(trials.identities),
        "queries": 0 if search is None else len(search.query),
        "queries_without_match": 0 if search is None else int((~search.mated.any(axis=1)).sum()),
        "gallery": 0 if search is None else len(search.gallery),
        "pairs": 0 if verified is None else len(verified.same),
        "dimensions": {"old": old.dimension, "new": new.dimension},
        "flips": flips(identity, before, after, [str(names[i]) for i in trials.identities]),
        "backfill": curves(trials, old, new, points) if backfill else [],
    }


def judge(
    figures: dict[str, Figure], drawn: NDArray[np.int64], confidence: float
) -> dict[str, Any]:
    """The figures, the gains and whether the criterion holds, from resamples `drawn` [r, n].

    The criterion holds where the lower bound of M(new, old) - M(old, old) is above 0; the update
    gain, [M(new, old) - M(old, old)] / [M(paragon, paragon) - M(old, old)], is given only there
    (BCT paper, Sec. 3.1), and where the paragon beats the old model at the same confidence.
    """
    everybody = np.ones((1, drawn.shape[1]), dtype=np.int64)
    values = {key: np.append(f.values(everybody), f.values(drawn)) for key, f in figures.items()}
    gains = values["new_old"] - values["old_old"]
    lower = lower_bound(gains[1:], confidence)
    found: dict[str, Any] = {key: float(value[0]) for key, value in values.items()}
    found |= {"gain": _with_interval(gains, confidence), "lower": lower, "holds": lower > 0}
    found["update_gain"] = None
    if "paragon" in values and found["holds"]:
        room = values["paragon"] - values["old_old"]
        if lower_bound(room[1:], confidence) > 0:
            with np.errstate(divide="ignore", invalid="ignore"):
                found["update_gain"] = _with_interval(gains / room, confidence)
    return found


def _with_interval(values: Floats, confidence: float) -> dict[str, float]:
    """The estimate, which is the first of `values`, and the interval of the resamples after it."""
    low, high = interval(values[1:], confidence)
    return {"value": float(values[0]), "low": low, "high": high}
