"""Optimising the exemplars of a group of classes: its updates, one after the other, and how good
they are in the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.counter_rng import bits, shuffled, stream_key
from trainer.mnemonics.settings import MnemonicsSettings
from trainer.mnemonics.unrolled import (
    Classified,
    Labelled,
    hypergradient,
    loss_of,
    pixels,
    rounded,
    trained,
)

Ids = NDArray[np.int64]
_BETAS, _EPSILON = (0.9, 0.999), 1e-12
"""Of Adam. Gradients by pixels are far below its customary epsilon of 1e-8."""


class Pool(NamedTuple):
    """Images to draw from."""

    images: torch.Tensor
    """[n, 3, H, W], of 8 bits, or as `Labelled` has them."""
    labels: torch.Tensor
    """[n] int64 classifier rows."""

    def at(self, places: Ids | slice) -> Labelled:
        """Some of them, as the network sees them."""
        chosen = places if isinstance(places, slice) else torch.from_numpy(places)
        images = self.images[chosen]
        seen = pixels(images) if images.dtype == torch.uint8 else images.clone()
        return Labelled(seen, self.labels[chosen])


class Side(NamedTuple):
    """What exemplars are optimised by: those that the temporary model is trained on, and the images
    that its outer loss is of."""

    learned: Ids
    """The places of the exemplars, among the group's, whose pixels change."""
    others: Pool
    """Exemplars of other classes, which the temporary model is trained on, too, and which stay."""
    outer: Pool | Ids
    """Images of the group's classes, or the places of exemplars of the group."""
    outer_others: Pool
    """Images of other classes."""


@dataclass(frozen=True)
class Group:
    """Classes whose exemplars are optimised together."""

    exemplars: Labelled
    """[n] as they are before."""
    sides: tuple[Side, ...]
    """By which they are optimised in turn: one where the classes' own images are there (Eq. 9), two
    halves where each is the other's outer loss (Eq. 10). None of their sets is empty, but for those
    of other classes."""
    key: str
    """Names it among all groups of a step: what is drawn depends on it."""


def halves(keys: NDArray[np.uint64], labels: Ids, seed: int) -> NDArray[np.bool_]:
    """Whether each of n exemplars is in half A: [n]; by classes, so that each class has as many in
    both, or one more in A.

    Which ones depends on `seed` and the exemplars' own hashes among `keys` [n], not on their order:
    a class' halves are the same after every step, as long as it keeps its exemplars.
    """
    order = np.lexsort((bits(stream_key(seed, "exemplar halves"), keys), labels))
    first = np.searchsorted(labels[order], labels[order])
    found = np.empty(len(keys), dtype=bool)
    found[order] = (np.arange(len(keys)) - first) % 2 == 0
    return found


def in_turn(seed: int, stream: str, count: int, first: int, number: int) -> Ids:
    """Places first <= p < first + number of an endless row of shuffles of range(`count`): [number],
    so that all of them come equally often."""
    at = np.arange(first, first + number)
    rounds = {
        r: shuffled(stream_key(seed, "mnemonics", stream, r), np.arange(count))
        for r in np.unique(at // count).tolist()
    }
    return np.array([rounds[p // count][p % count] for p in at.tolist()], dtype=np.int64)


class Optimisation:
    """The updates of a group's exemplars. What each draws depends on seed, group and its number
    alone."""

    def __init__(
        self, group: Group, network: Classified, settings: MnemonicsSettings, seed: int
    ) -> None:
        self._group, self._network, self._settings, self._seed = group, network, settings, seed
        self.images = group.exemplars.images.clone()
        """[n, 3, H, W] from -1 to 1, as they are by now."""
        self._moments = torch.zeros(2, *self.images.shape, device=self.images.device)
        self.done = 0
        """Updates made."""

    @cached_property
    def total(self) -> int:
        """Updates in all."""
        return self._settings.epochs * sum(self._updates)

    @cached_property
    def _updates(self) -> list[int]:
        """In an epoch, by each side."""
        return [
            updates(len(_labels(side.outer)), bool(len(side.outer_others.labels)), self._settings)
            for side in self._group.sides
        ]

    def update(self) -> float:
        """Makes one, and returns the outer loss before it."""
        epoch, left = divmod(self.done, sum(self._updates))
        number = 0
        while left >= self._updates[number]:
            left -= self._updates[number]
            number += 1
        side, before = self._group.sides[number], epoch * self._updates[number] + left
        loss, slope = hypergradient(
            self._network,
            self.images,
            self._inner(side, number, before),
            self._outer(side, number, before),
            self._settings.inner_rate,
            self._settings.recompute,
        )
        rate = self._settings.learning_rate * 0.5 ** (epoch // self._settings.halve_every)
        learned = torch.from_numpy(side.learned)
        moved = rate * self._direction(learned, slope[learned], before + 1)
        self.images[learned] = (self.images[learned] - moved).clamp_(-1, 1)
        self.done += 1
        return float(loss)

    def _direction(self, learned: torch.Tensor, slope: torch.Tensor, count: int) -> torch.Tensor:
        """Against which the pixels of those `learned` move, in their `count`-th update."""
        if self._settings.optimizer == "sgd":
            return slope
        (first, second), (of_mean, of_square) = self._moments, _BETAS
        mean = first[learned].lerp_(slope, 1 - of_mean)
        square = second[learned].lerp_(slope.square(), 1 - of_square)
        first[learned], second[learned] = mean, square
        scale = (square / (1 - of_square**count)).sqrt_().add_(_EPSILON)
        return mean / (1 - of_mean**count) / scale

    def _inner(
        self, side: Side, number: int, update: int
    ) -> list[tuple[torch.Tensor, torch.Tensor, Labelled | None]]:
        """What each step of the temporary model is on."""
        own, others = shared(self._settings.inner_batch, bool(len(side.others.labels)))
        own, others = min(own, len(side.learned)), min(others, len(side.others.labels))
        batches = []
        for step in range(self._settings.inner_steps):
            turn = update * self._settings.inner_steps + step
            places = torch.from_numpy(
                side.learned[self._drawn("inner", number, len(side.learned), turn, own)]
            )
            beside = None
            if others:
                count = len(side.others.labels)
                beside = side.others.at(self._drawn("inner others", number, count, turn, others))
            batches.append((places, self._group.exemplars.labels[places], beside))
        return batches

    def _outer(self, side: Side, number: int, update: int) -> Labelled:
        """What the outer loss of an update is of."""
        own, others = shared(self._settings.batch, bool(len(side.outer_others.labels)))
        count = len(_labels(side.outer))
        own, others = min(own, count), min(others, len(side.outer_others.labels))
        batch = self._validation(
            side, self._drawn("outer", number, count, update, own), self.images
        )
        if not others:
            return batch
        count = len(side.outer_others.labels)
        places = self._drawn("outer others", number, count, update, others)
        return Labelled(
            *(torch.cat(both) for both in zip(batch, side.outer_others.at(places), strict=True))
        )

    def _validation(self, side: Side, places: Ids, images: torch.Tensor) -> Labelled:
        """Some of the images of the group's classes that the outer loss of a side is of, where its
        exemplars have these `images`."""
        if isinstance(side.outer, Pool):
            return side.outer.at(places)
        return Pool(images, self._group.exemplars.labels).at(side.outer[places])

    def _drawn(self, what: str, side: int, count: int, turn: int, number: int) -> Ids:
        stream = f"{self._group.key}/{side}/{what}"
        return in_turn(self._seed, stream, count, turn * number, number)

    def outer_loss(self, images: torch.Tensor) -> float:
        """Of a temporary model trained on exemplars with these `images` [n, 3, H, W], the mean loss
        on all images of the group's classes that their outer loss is of; the mean over sides. Of
        halves, each is judged by the other as it came. All draws are those of the first update."""
        total = 0.0
        for number, side in enumerate(self._group.sides):
            batches = []
            for places, labels, beside in self._inner(side, number, 0):
                batch = Labelled(images[places], labels)
                if beside is not None:
                    batch = Labelled(*(torch.cat(both) for both in zip(batch, beside, strict=True)))
                batches.append(batch)
            weights = trained(self._network, batches, self._settings.inner_rate)
            every = np.arange(len(_labels(side.outer)))
            summed = 0.0
            for part in np.array_split(every, -(-len(every) // self._settings.batch)):
                batch = self._validation(side, part, self._group.exemplars.images)
                with torch.no_grad():
                    summed += float(loss_of(self._network, weights, batch)) * len(part)
            total += summed / len(every)
        return total / len(self._group.sides)

    def verdict(self) -> dict[str, float]:
        """The outer loss with the exemplars as they came, as they are, and of 8 bits."""
        whole = pixels(rounded(self.images))
        every = (self._group.exemplars.images, self.images, whole)
        names = ("before", "learned", "rounded")
        return dict(zip(names, map(self.outer_loss, every), strict=True))

    def state(self) -> dict[str, NDArray[np.generic]]:
        """All that its further updates depend on."""
        held = {"images": self.images, "moments": self._moments}
        arrays = {name: tensor.cpu().numpy() for name, tensor in held.items()}
        return {**arrays, "done": np.array([self.done])}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Goes on from a `state`."""
        device = self.images.device
        self.images = torch.from_numpy(state["images"]).to(device)
        self._moments = torch.from_numpy(state["moments"]).to(device)
        self.done = int(state["done"][0])


def _labels(outer: Pool | Ids) -> torch.Tensor | Ids:
    return outer.labels if isinstance(outer, Pool) else outer


def shared(batch: int, others: bool) -> tuple[int, int]:
    """How many images of a batch are of the group's classes, and how many of others."""
    return (batch - batch // 2, batch // 2) if others else (batch, 0)


def updates(images: int, others: bool, settings: MnemonicsSettings) -> int:
    """How many updates a pass over so many `images` of a group's classes takes, where there are
    `others`."""
    own, _ = shared(settings.batch, others)
    return -(-images // own)
