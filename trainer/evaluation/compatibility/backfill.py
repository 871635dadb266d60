"""Partial backfill: what new queries reach as more of the gallery is embedded by the new model.

Identities are re-embedded whole, in some order, in steps of 2 %. New queries meet new vectors in
full and old ones by the leading slice. Best scores under every prefix of an order are running
maxima along it, so a curve costs about as much as one figure.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.counter_rng import shuffled, stream_key
from trainer.evaluation.compatibility.measures import Outcome, measure
from trainer.evaluation.compatibility.points import Point
from trainer.evaluation.compatibility.search import (
    Best,
    Search,
    best_scores,
    group_scores,
    split_own,
)
from trainer.evaluation.compatibility.trials import Trials
from trainer.evaluation.compatibility.vectors import Embedded

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Scores = NDArray[np.floating]
SHARES = np.linspace(0, 1, 51)
"""Of the gallery's identities that are re-embedded."""
_SEEDS = 5  # random orders


def gallery_identities(trials: Trials) -> Ids:
    """The identities in the gallery or on the right side of pairs, ascending."""
    asked = [] if trials.search is None else [trials.search.gallery_identity]
    asked += [] if trials.pairs is None else [trials.pairs.right_identity]
    return np.unique(np.concatenate(asked))


def curves(
    trials: Trials, old: Embedded, new: Embedded, points: Sequence[Point]
) -> list[dict[str, Any]]:
    """For each of `points` but map, its value at each of `SHARES` re-embedded.

    ``random``: mean, least and most over random orders of the identities; ``isolated``: under
    `isolated_first`.
    """
    points = [point for point in points if point.kind != "map"]
    if not points:
        return []
    people = gallery_identities(trials)
    orders = [shuffled(stream_key(seed, "backfill"), people) for seed in range(_SEEDS)]
    mixed = mixtures(
        trials=trials,
        old=old,
        new=new,
        points=points,
        orders=[*orders, isolated_first(trials, old)],
    )
    everybody = np.ones((1, len(trials.identities)), dtype=np.int64)
    found = []
    for point in points:
        values = np.array(
            [[m.figure(point).values(everybody)[0] for m in steps] for steps in mixed]
        )
        random = values[:_SEEDS]
        found.append(
            {
                "point": point.name,
                "share": SHARES.round(2).tolist(),
                "random": {
                    "mean": random.mean(0).tolist(),
                    "least": random.min(0).tolist(),
                    "most": random.max(0).tolist(),
                },
                "isolated": values[-1].tolist(),
            }
        )
    return found


def isolated_first(trials: Trials, old: Embedded) -> Ids:
    """The gallery's identities, farthest from all others' stored vectors first.

    A new query scores higher with new vectors than with old ones, whomever they show, so vectors
    that are re-embedded outrank mates that are not yet. Identities far from all others do so to the
    fewest queries. Only the old model's vectors are needed: the order can be computed before
    anything is re-embedded.
    """
    number, identity = _stored(trials)
    vectors = trials.vectors(old, old.dimension).of(number)
    nobody, somebody = np.zeros(len(number), dtype=np.int64), np.ones(len(number), dtype=np.int64)
    among = Search.of((number, identity, nobody), (number, identity, somebody), nobody)
    nearest = best_scores(among, vectors, vectors[np.searchsorted(number, among.gallery)]).other
    people, own = np.unique(identity, return_inverse=True)
    crowd = np.full(len(people), -np.inf)
    np.maximum.at(crowd, own, nearest[:, 0])
    return people[np.argsort(crowd, kind="stable")]


def _stored(trials: Trials) -> tuple[Ids, Ids]:
    """The images or templates of the gallery, ascending, and the identity of each."""
    search, pairs = trials.search, trials.pairs
    sides = [] if search is None else [(search.gallery, search.gallery_identity)]
    sides += [] if pairs is None else [(pairs.right, pairs.right_identity)]
    numbers, identities = (np.concatenate(column) for column in zip(*sides, strict=True))
    number, first = np.unique(numbers, return_index=True)
    return number, identities[first]


def mixtures(
    trials: Trials, old: Embedded, new: Embedded, points: Sequence[Point], orders: Sequence[Ids]
) -> list[list[Outcome]]:
    """The outcomes of new queries when a leading part of each order's identities is re-embedded.

    One list for each order, with an outcome for each of `SHARES`.
    """
    before, after = measure(trials, new, old, points), measure(trials, new, new, points)
    people = gallery_identities(trials)
    turns = [_turn(people, order) for order in orders]
    found: list[list[Best | None]] = [[None] * len(SHARES) for _ in orders]
    if trials.search is not None and before.best is not None:
        ranks = [turn[np.searchsorted(people, trials.search.group_identity)] for turn in turns]
        found = [list(bests) for bests in _mixed_searches(trials, old, new, ranks)]
    scores: list[list[Floats | None]] = [[None] * len(SHARES) for _ in orders]
    if trials.pairs is not None and before.score is not None and after.score is not None:
        right = np.searchsorted(people, trials.pairs.right_identity)
        scores = [
            [np.where(turn[right] < share, after.score, before.score) for share in SHARES]
            for turn in turns
        ]
    return [
        [Outcome(trials, best, None, score) for best, score in zip(*both, strict=True)]
        for both in zip(found, scores, strict=True)
    ]


def _turn(people: Ids, order: Ids) -> Floats:
    """[n] the share of re-embedded identities above which each of `people` is among them."""
    turn = np.empty(len(people))
    turn[np.searchsorted(people, order)] = (np.arange(len(order)) + 0.5) / len(order)
    return turn


def _mixed_searches(
    trials: Trials, old: Embedded, new: Embedded, turns: Sequence[Floats]
) -> list[list[Best]]:
    """Best scores in mixed galleries: a group is new at the shares above its turn (`turns` [G]).

    One list for each of `turns`, with the scores at each of `SHARES`.
    """
    search = trials.search
    assert search is not None
    dimension = min(old.dimension, new.dimension)
    whole, leading = (trials.vectors(new, d) for d in (new.dimension, dimension))
    stored = trials.vectors(old, dimension)
    blocks = zip(
        group_scores(search, leading.of(search.query), stored.of(search.gallery)),
        group_scores(search, whole.of(search.query), whole.of(search.gallery)),
        strict=True,
    )
    parts: list[list[tuple[Scores, Scores]]] = [[] for _ in turns]
    for (block, before), (_, after) in blocks:
        sides = split_own(search, block, before), split_own(search, block, after)
        for found, turn in zip(parts, turns, strict=True):
            found.append(_mixed_block(search, block, *sides, turn))
    joined = [[np.concatenate(side) for side in zip(*found, strict=True)] for found in parts]
    return [
        [Best(mate[k], other[k]) for k in range(len(SHARES))]
        for mate, other in ([np.moveaxis(side, 2, 0) for side in both] for both in joined)
    ]


def _mixed_block(
    search: Search,
    block: slice,
    before: tuple[Scores, Scores],
    after: tuple[Scores, Scores],
    turn: Floats,
) -> tuple[Scores, Scores]:
    """Best scores [b, P, shares] of mates and others of a block of queries."""
    own_turn = turn[search.own[block]]
    is_new = own_turn[:, :, None] < SHARES
    mate = np.where(is_new, after[0][:, :, None], before[0][:, :, None])
    other = np.empty_like(mate)
    for part in range(search.parts):
        first, last = np.searchsorted(search.group_part, [part, part + 1])
        order = first + np.argsort(turn[first:last], kind="stable")
        done = np.searchsorted(turn[order], SHARES)  # groups re-embedded at each share
        # the first `done` groups of the order are new and the others old: running maxima from the
        # front and from the back give the best score at every share at once
        nobody = np.full((len(mate), 1), -np.inf, dtype=mate.dtype)
        new = np.maximum.accumulate(np.hstack([nobody, after[1][:, order]]), axis=1)
        old = np.maximum.accumulate(np.hstack([nobody, before[1][:, order[::-1]]]), axis=1)
        other[:, part] = np.maximum(new[:, done], old[:, ::-1][:, done])
    return mate, other
