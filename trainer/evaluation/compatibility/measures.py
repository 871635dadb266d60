"""M(query model, gallery model): a test whose queries and gallery are embedded by two models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.evaluation.blocks import query_blocks
from trainer.evaluation.compatibility.figures import Accepted, Figure, MeanOf, Share
from trainer.evaluation.compatibility.points import Point
from trainer.evaluation.compatibility.search import Best, best_scores
from trainer.evaluation.compatibility.trials import Trials
from trainer.evaluation.compatibility.vectors import Embedded
from trainer.evaluation.retrieval import Labels, search
from trainer.evaluation.verification import squared_distances

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """The results of all trials of a test, for one model of the queries and one of the gallery."""

    trials: Trials
    best: Best | None
    """Best scores of the searches."""
    precision: NDArray[np.float64] | None
    """[q] each query's average precision, if needed."""
    score: NDArray[np.float64] | None
    """[p] minus the squared distance of each pair."""

    def figure(self, point: Point) -> Figure:
        """The figure of an operating point, by identity (`Trials.identities`)."""
        if point.kind == "tar":
            return self._pairs(point.rate)
        found, best = self.trials.search, self.best
        assert found is not None and best is not None
        identity = np.searchsorted(self.trials.identities, found.query_identity)
        if point.kind == "top1":
            right, counted = best.right(found)
            return MeanOf(
                [Share(identity[c], r[c]) for r, c in zip(right.T, counted.T, strict=True)]
            )
        if point.kind == "map":
            assert self.precision is not None
            mated = found.mated.any(1)
            return Share(identity[mated], self.precision[mated])
        score = np.where(best.mate > best.other, best.mate, -np.inf)
        return MeanOf(
            [
                Accepted(
                    genuine=score[m, p],
                    genuine_identity=identity[m],
                    impostor=best.other[u, p],
                    impostor_identity=identity[u],
                    rate=point.rate,
                )
                for p, (m, u) in enumerate(zip(found.mated.T, found.unmated.T, strict=True))
            ]
        )

    def _pairs(self, rate: float) -> Accepted:
        pairs = self.trials.pairs
        assert pairs is not None and self.score is not None
        identity, same = np.searchsorted(self.trials.identities, pairs.left_identity), pairs.same
        return Accepted(
            genuine=self.score[same],
            genuine_identity=identity[same],
            impostor=self.score[~same],
            impostor_identity=identity[~same],
            rate=rate,
        )

    def rights(self, points: Sequence[Point]) -> tuple[Ids, NDArray[np.bool_]]:
        """The identity of each trial (rows of `Trials.identities`), and whether it is right.

        Trials are the searches, if there are any, at rank 1; otherwise pairs, at the threshold of
        the first of `points`.
        """
        found, best = self.trials.search, self.best
        if found is not None and best is not None:
            identity = np.searchsorted(self.trials.identities, found.query_identity)
            right, counted = best.right(found)
            return identity[np.nonzero(counted)[0]], right[counted]
        pairs = self.trials.pairs
        assert pairs is not None and self.score is not None
        identity = np.searchsorted(self.trials.identities, pairs.left_identity)
        everybody = np.ones((1, len(self.trials.identities)), dtype=np.int64)
        threshold = self._pairs(points[0].rate).thresholds(everybody)[0]
        return identity, (self.score > threshold) == pairs.same


def measure(trials: Trials, query: Embedded, gallery: Embedded, points: Sequence[Point]) -> Outcome:
    """Tests a model of the queries and one of the gallery, as far as `points` need."""
    dimension = min(query.dimension, gallery.dimension)
    asking, asked = (trials.vectors(model, dimension) for model in (query, gallery))
    kinds = {point.kind for point in points}
    best = precision = score = None
    if (found := trials.search) is not None and kinds - {"tar"}:
        sides = asking.of(found.query), asked.of(found.gallery)
        best = best_scores(found, *sides)
        precision = _precision(trials, *sides) if "map" in kinds else None
    if (pairs := trials.pairs) is not None and "tar" in kinds:
        score = -squared_distances(asking.of(pairs.left), asked.of(pairs.right))
    return Outcome(trials, best, precision, score)


def _precision(trials: Trials, query: torch.Tensor, gallery: torch.Tensor) -> NDArray[np.float64]:
    found = trials.search
    assert found is not None
    labels = Labels(found.gallery_identity, found.gallery_camera)
    blocks = query_blocks(len(query), len(gallery))
    asked = query, found.query_identity, found.query_camera, gallery, labels
    return np.concatenate([search(block, *asked).precision for block in blocks])
