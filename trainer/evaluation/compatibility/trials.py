"""The trials of a compatibility test: searches, pairs or both, of images or of templates."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data_shards.settings import InputError
from data_shards.sources import ROLES
from data_shards.splits.benchmark import Benchmark
from data_shards.splits.cameras import cameras
from data_shards.storage.dataset import ShardDataset
from trainer.evaluation.compatibility.points import DEFAULT, Point
from trainer.evaluation.compatibility.search import Search
from trainer.evaluation.compatibility.vectors import Embedded, comparable
from trainer.evaluation.templates import template_vectors
from trainer.evaluation.test_sets.common import columns, searched

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pairs ([p]) to verify: the new model embeds the left side, the old one the right."""

    left: Ids
    right: Ids
    same: NDArray[np.bool_]
    left_identity: Ids
    right_identity: Ids


@dataclass(frozen=True)
class Templates:
    """Images ([k] rows) of templates: `sample` shows `template` in `medium`."""

    sample: Ids
    template: Ids
    medium: Ids


@dataclass(frozen=True)
class Trials:
    """A test of two models. Queries and pairs refer to images, or to `templates` if given."""

    search: Search | None
    pairs: Pairs | None
    templates: Templates | None
    normalised: bool
    """Whether vectors are normalised to length 1 before they are compared."""
    what: str
    """The test's name in errors."""
    refused: int = 0
    """Pairs left out because an image of theirs was refused at import."""

    @cached_property
    def identities(self) -> Ids:
        """[n] the identities of queries and left sides, ascending: what a resample draws from."""
        asked = [] if self.search is None else [self.search.query_identity]
        asked += [] if self.pairs is None else [self.pairs.left_identity]
        return np.unique(np.concatenate(asked))

    @cached_property
    def samples(self) -> Ids:
        """The dataset rows to embed, ascending."""
        if self.templates is not None:
            return np.unique(self.templates.sample)
        asked = [] if self.search is None else [self.search.query, self.search.gallery]
        asked += [] if self.pairs is None else [self.pairs.left, self.pairs.right]
        return np.unique(np.concatenate(asked))

    def vectors(self, model: Embedded, dimension: int) -> Embedded:
        """The model's vectors of the images or templates, with the first `dimension` elements."""
        own = self.samples if self.templates is None else self.templates.sample
        if self.templates is None:
            found = comparable(model.of(own), dimension, self.normalised)
            return Embedded(own, found.numpy())
        # templates are normalised last: their leading elements are sums of the images' leading ones
        images = comparable(model.of(own), dimension, normalised=False)
        return Embedded(*template_vectors(images, self.templates.template, self.templates.medium))

    def points(self, asked: Iterable[str]) -> list[Point]:
        """The operating points of these names; without any, those of `DEFAULT` it can measure.

        Raises InputError for one that it cannot measure, naming the smallest rate that it can.
        """
        points = [Point.parse(name) for name in asked]
        if points:
            for point in points:
                self._check(point)
            return points
        points = [Point.parse(name) for name in DEFAULT if self._why_not(name) is None]
        if not points:
            raise InputError(
                f"{self.what} can tell neither of {' and '.join(DEFAULT)}: name others"
            )
        return points

    def left_out(self, asked: Iterable[str]) -> list[str]:
        """Lines on what a comparison at these points leaves out."""
        untold = [] if list(asked) else [self._why_not(name) for name in DEFAULT]
        refused = f"{self.refused:,} pairs have an image that was refused at import"
        return [why for why in untold if why] + ([refused] if self.refused else [])

    def _why_not(self, name: str) -> str | None:
        """Why the operating point `name` cannot be measured, or None if it can."""
        try:
            self._check(Point.parse(name))
        except InputError as error:
            return str(error)
        return None

    def _check(self, point: Point) -> None:
        """Raises InputError if `point` cannot be measured."""
        if point.kind == "tar":
            if self.pairs is None:
                raise InputError(f"{self.what} has no pairs, which {point.name} needs")
            genuine = [int(self.pairs.same.sum())]
            impostors = [len(self.pairs.same) - genuine[0]]
        elif self.search is None:
            raise InputError(f"{self.what} has no queries and gallery, which {point.name} needs")
        elif point.kind == "tpir":
            genuine = self.search.mated.sum(0).tolist()
            impostors = self.search.unmated.sum(0).tolist()
        else:
            if point.kind == "map" and not self.search.halved:
                raise InputError(f"{self.what} has several galleries: there is no map of them")
            genuine, impostors = [int(self.search.mated.sum())], [1]
        if not min(genuine) or not min(impostors):
            raise InputError(f"{self.what} has no trial of one kind for {point.name}: ask another")
        if point.rate * min(impostors) * (1 + 1e-12) < 1:
            raise InputError(
                f"{self.what} has {min(impostors):,} impostor trials, too few for {point.name}: "
                f"the smallest rate that it can tell is {point.kind}@{_smallest(min(impostors))}"
            )


def _smallest(impostors: int) -> str:
    """The smallest rate that so many impostors can measure, rounded up to two digits."""
    power = 10 ** (math.floor(math.log10(1 / impostors)) - 1)
    return f"{math.ceil(1 / impostors / power - 1e-9) * power:.2g}"


def of_benchmark(dataset: ShardDataset, benchmark: Benchmark, distance: str, what: str) -> Trials:
    """The test sets of a run's benchmark: identities that no step learns. Raises InputError."""
    search = pairs = None
    if len(benchmark.query):
        search = _search(dataset, benchmark.query, benchmark.gallery, apart=benchmark.by_image)
    if len(benchmark.pairs):
        left, right = benchmark.pairs.T
        identity = dataset.identity
        pairs = Pairs(left, right, benchmark.same, identity[left], identity[right])
    if search is None and pairs is None:
        raise InputError(f"{what} has neither queries and gallery nor pairs to compare models on")
    return Trials(
        search=search, pairs=pairs, templates=None, normalised=distance == "cosine", what=what
    )


def of_dataset(dataset: ShardDataset) -> Trials:
    """The trials that a dataset's tables and roles define, of vectors of length 1.

    Raises InputError when it defines none.
    """
    held, what = set(dataset.manifest.get("tables", ())), dataset.location
    if "templates" in held:
        return _templates(dataset, held, what)
    search, pairs, refused = None, None, 0
    if "pairs" in held:
        left, right, same = columns(dataset.table("pairs"), "left", "right", "same")
        there = (left >= 0) & (right >= 0)
        left, right, refused = left[there], right[there], int((~there).sum())
        identity = dataset.identity
        pairs = Pairs(left, right, same[there], identity[left], identity[right])
    asked, found = (np.flatnonzero(dataset.role == ROLES.index(r)) for r in ("query", "gallery"))
    if len(asked) and len(found):
        search = _search(dataset, asked, *searched(dataset))
    if search is None and pairs is None:
        raise InputError(
            f"{what} has no images with roles query and gallery, and none of the tables pairs and "
            "templates: give a run's configuration (.yaml) or another dataset"
        )
    return Trials(
        search=search, pairs=pairs, templates=None, normalised=True, what=what, refused=refused
    )


def _search(
    dataset: ShardDataset, query: Ids, gallery: Ids, shown: Ids | None = None, apart: bool = False
) -> Search:
    """A search in `gallery`, whose images show the identities `shown`; none: the dataset's own.

    With `apart` every image counts as taken by a camera of its own.
    """
    shown = dataset.identity[gallery] if shown is None else shown
    return Search.of(
        (query, dataset.identity[query], cameras(dataset, query, apart)),
        (gallery, shown, cameras(dataset, gallery, apart)),
    )


def _templates(dataset: ShardDataset, held: set[str], what: str) -> Trials:
    table = columns(dataset.table("templates"), "sample", "template", "medium")
    sample, template, medium = (column[table[0] >= 0] for column in table)
    known, first = np.unique(template, return_index=True)
    shows = dataset.identity[sample[first]]
    search = pairs = None
    if "template_pairs" in held:
        left, right, same = columns(dataset.table("template_pairs"), "left", "right", "same")
        there = np.isin(left, known) & np.isin(right, known)
        left, right = left[there], right[there]
        of_left, of_right = (shows[np.searchsorted(known, side)] for side in (left, right))
        pairs = Pairs(left, right, same[there], of_left, of_right)
    if "search" in held:
        search = _template_search(dataset, known, shows)
    if search is None and pairs is None:
        raise InputError(f"{what} has neither of the tables template_pairs and search")
    return Trials(
        search=search,
        pairs=pairs,
        templates=Templates(sample, template, medium),
        normalised=True,
        what=what,
    )


def _template_search(dataset: ShardDataset, known: Ids, shows: Ids) -> Search:
    names, part = columns(dataset.table("search"), "template", "part")
    there = np.isin(names, known)
    names, part = names[there], part[there]
    subject, probe = shows[np.searchsorted(known, names)], part == "probe"
    # no camera: probes have camera 0, the gallery camera 1
    asked = names[probe], subject[probe], np.zeros(probe.sum(), dtype=np.int64)
    found = names[~probe], subject[~probe], np.ones((~probe).sum(), dtype=np.int64)
    _, number = np.unique(part[~probe].astype(str), return_inverse=True)
    return Search.of(asked, found, number)
