"""Small tests with made-up embeddings, and figures by definition, one trial after the other."""

from typing import NamedTuple

import numpy as np

from trainer.evaluation.compatibility.search import Search
from trainer.evaluation.compatibility.trials import Pairs, Templates, Trials
from trainer.evaluation.compatibility.vectors import Embedded


class World(NamedTuple):
    trials: Trials
    identity: np.ndarray
    """[n] of each image."""
    camera: np.ndarray


def world(
    seed: int, people: int = 24, images: int = 6, pairs: int = 600, normalised: bool = True
) -> World:
    """`people` seen by three cameras; the last few are in the gallery only, one has no mate."""
    draw = np.random.default_rng(seed)
    identity = np.repeat(np.arange(people), images)
    camera = draw.integers(3, size=len(identity))
    query = draw.random(len(identity)) < 0.4
    query[identity >= people - 4] = False  # distractors
    query[identity == 0] = True  # a query whose identity is not in the gallery
    asked, found = np.flatnonzero(query), np.flatnonzero(~query)
    camera[found[identity[found] == 1]] = 1  # a query whose mates are all by its own camera
    camera[asked[identity[asked] == 1]] = 1
    search = Search.of(
        (asked, identity[asked], camera[asked]), (found, identity[found], camera[found])
    )
    left, right = draw.choice(asked, pairs), draw.choice(found, pairs)
    same = np.arange(pairs) % 2 == 0
    for row in np.flatnonzero(same):
        mates = found[identity[found] == identity[left[row]]]
        right[row] = draw.choice(mates) if len(mates) else left[row]
    same = identity[left] == identity[right]
    verified = Pairs(left, right, same, identity[left], identity[right])
    return World(Trials(search, verified, None, normalised, "the test"), identity, camera)


def model(world: World, seed: int, dimension: int = 8, noise: float = 0.8) -> Embedded:
    """Embeddings around a direction of each identity that all models share."""
    shared = np.random.default_rng(0).normal(size=(1000, 64))[:, :dimension]
    draw = np.random.default_rng(seed)
    vectors = shared[world.identity] + noise * draw.normal(size=(len(world.identity), dimension))
    return Embedded(np.arange(len(world.identity)), vectors.astype(np.float32))


def distance(a: np.ndarray, b: np.ndarray, normalised: bool) -> float:
    """Between vectors of any lengths, by the leading slice, in float64."""
    d = min(len(a), len(b))
    a, b = a[:d].astype(np.float64), b[:d].astype(np.float64)
    if normalised:
        a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return float(((a - b) ** 2).sum())


def ranked(world: World, query: Embedded, gallery: Embedded, asked: int, part=None):
    """(distance, identity) of the gallery images that a query may find, nearest first."""
    search = world.trials.search
    rows = search.gallery if part is None else search.gallery[search.gallery_part == part]
    own, by = world.identity[asked], world.camera[asked]
    rows = [g for g in rows if not (world.identity[g] == own and world.camera[g] == by)]
    found = [
        (distance(query.vectors[asked], gallery.vectors[g], world.trials.normalised), g)
        for g in rows
    ]
    return [(d, world.identity[g]) for d, g in sorted(found)]


def top1(world: World, query: Embedded, gallery: Embedded) -> float:
    hits = []
    for asked in world.trials.search.query:
        found = ranked(world, query, gallery, asked)
        if world.identity[asked] in [who for _, who in found]:
            hits.append(found[0][1] == world.identity[asked])
    return float(np.mean(hits))


def mean_average_precision(world: World, query: Embedded, gallery: Embedded) -> float:
    found = []
    for asked in world.trials.search.query:
        right = [who == world.identity[asked] for _, who in ranked(world, query, gallery, asked)]
        ranks = np.flatnonzero(right) + 1
        if len(ranks):
            found.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return float(np.mean(found))


def accepted(genuine, impostor, rate: float) -> float:
    """The highest share of genuine scores over every threshold that accepts few enough."""
    best = 0.0
    for threshold in genuine:
        if sum(i >= threshold for i in impostor) <= rate * len(impostor) + 1e-9:
            best = max(best, sum(g >= threshold for g in genuine) / len(genuine))
    return best


def tar(world: World, query: Embedded, gallery: Embedded, rate: float) -> float:
    pairs, normal = world.trials.pairs, world.trials.normalised
    score = [
        -distance(query.vectors[a], gallery.vectors[b], normal)
        for a, b in zip(pairs.left, pairs.right, strict=True)
    ]
    score = np.array(score)
    return accepted(score[pairs.same], score[~pairs.same], rate)


def tpir(world: World, query: Embedded, gallery: Embedded, rate: float) -> float:
    search, found = world.trials.search, []
    for part in (0, 1):
        there = set(search.gallery_identity[search.gallery_part == part].tolist())
        genuine, impostor = [], []
        for asked in search.query:
            near, own = ranked(world, query, gallery, asked, part), world.identity[asked]
            if own not in there:
                impostor.append(-near[0][0])
            elif own in [who for _, who in near]:
                genuine.append(-near[0][0] if near[0][1] == own else -np.inf)
        found.append(
            accepted([g for g in genuine if g > -np.inf], impostor, rate)
            * (sum(g > -np.inf for g in genuine) / len(genuine))
        )
    return float(np.mean(found))


def in_templates(world: World) -> Trials:
    """The same images as templates of one to three, with two galleries of their own."""
    draw = np.random.default_rng(5)
    template = np.repeat(np.arange(len(world.identity) // 2), 2) + 100
    medium = draw.integers(2, size=len(template))
    names = np.unique(template)
    subject = world.identity[(names - 100) * 2]
    role = (names - 100) % 3
    probe, gallery = role == 0, role > 0
    search = Search.of(
        (names[probe], subject[probe], np.zeros(probe.sum(), dtype=np.int64)),
        (names[gallery], subject[gallery], np.ones(gallery.sum(), dtype=np.int64)),
        subject[gallery] % 2,
    )
    templates = Templates(np.arange(len(template)), template, medium)
    return Trials(search, None, templates, True, "the templates")
