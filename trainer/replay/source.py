"""What draws features of old identities, and which ones are drawn in which iteration."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from data_shards.counter_rng import stream_key
from data_shards.orders.draws import rounds
from data_shards.settings import InputError
from trainer.checkpoint import Folder

CARD = "generator"
"""The kind of folder that a generator is in."""
Tensors = Mapping[str, torch.Tensor]


class FeatureSource(Protocol):
    """Draws embeddings of the identities 0 <= row < `rows`, which earlier steps learned; or images
    of them, or what a block of the network makes of these."""

    @property
    def rows(self) -> int:
        """How many identities it knows, by their classifier rows."""

    @property
    def noise(self) -> int:
        """How many standard normal numbers a feature is made of."""

    def features(self, classes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """[n, d] float32 embeddings, or [n, channels, height, width], of the identities `classes`
        [n] int64, each made of its `noise` [n, `self.noise`]: the same for the same numbers,
        whatever else is asked for with them."""


class GeneratorKind(Protocol):
    """How a generator is made; frozen dataclasses that spell what decides it, as Terms do."""

    of: ClassVar[str]
    """What it is called in its folder's card."""

    def read(self, folder: Folder, device: torch.device) -> FeatureSource:
        """From what `generator_files` gave. Raises DamagedError, and InputError for one that was
        made with other settings and cannot be gone on with."""

    def imagined(self, rows: int, shape: tuple[int, ...]) -> FeatureSource:
        """The like of what `read` makes, of any values, for `rows` identities' features, each of
        this `shape`: for dry runs."""

    def beside(self, rows: int, shape: tuple[int, ...]) -> int:
        """Bytes in its folder that what `read` makes does not have."""


def generator_files(
    kind: GeneratorKind, tensors: Tensors, **facts: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Files and card of the folder of a generator with `tensors`, by name, and further `facts`.

    The card says how many bytes the tensors have, which is what a method keeps for later steps.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    card = {"kind": CARD, "of": kind.of, "bytes": size, **facts}
    return {CARD: {name: own.contiguous() for name, own in tensors.items()}}, card


def read_generator(folder: Folder, kind: GeneratorKind, **facts: Any) -> dict[str, torch.Tensor]:
    """The tensors of a generator's folder. Raises DamagedError, and InputError where its card says
    that another kind made it, or with other `facts`."""
    folder.verify()
    card = folder.card(CARD)
    wanted = {"of": kind.of, **facts}
    if found := {key: card.get(key) for key in wanted if card.get(key) != wanted[key]}:
        text = ", ".join(
            f"{key} = {str(own)[:40]}, not {wanted[key]}" for key, own in found.items()
        )
        raise InputError(
            f"{folder} holds another generator than the method asks for: {text}: give the method "
            "the settings that it had there"
        )
    return folder.tensors(CARD)


def replayed(
    source: FeatureSource, count: int, seed: int, iteration: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` features [count, d] for `iteration` with their identities [count] int64.

    A function of (seed, iteration) alone, so that every rank draws the same ones and a resumed
    training goes on with them. Every identity is drawn equally often, but for one. Normal numbers
    are torch's of the CPU: of a GPU's generator they would be others.
    """
    classes, noise = numbers(source, count, seed, iteration)
    classes = classes.to(device)
    return source.features(classes, noise.to(device)), classes


def numbers(
    source: FeatureSource, count: int, seed: int, iteration: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `replayed` makes features of, on the CPU: identities [count] int64 and noise
    [count, `source.noise`]."""
    positions = np.arange(iteration * count, (iteration + 1) * count, dtype=np.int64)
    keys = np.full(count, stream_key(seed, "replayed identities"), dtype=np.uint64)
    known = np.full(count, source.rows, dtype=np.int64)
    classes = torch.from_numpy(rounds(known, count, keys, positions))
    generator = torch.Generator().manual_seed(int(stream_key(seed, "replay", iteration) >> 1))
    return classes, torch.randn(count, source.noise, generator=generator)
