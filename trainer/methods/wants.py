"""What Terms want of earlier models. The phases before a training follow from it.

A want is data: a frozen dataclass. A new one is a class of its own, in whatever file its Term is
in; nothing here or in `Recipe` lists them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from trainer.heads.collectives import Ranks


class Want:
    """Base of all wants. Frozen dataclasses, so that equal ones are one."""

    @classmethod
    def merge(cls, wants: Sequence[Self]) -> Self:
        """One want that serves the Terms that have these `wants`, all of this class.

        Unless a class knows better, they must be equal. Raises ValueError.
        """
        different = list(dict.fromkeys(wants))
        if len(different) > 1:
            raise ValueError(f"one recipe cannot have both {different[0]} and {different[1]}")
        return different[0]

    def load(self, path: Path, ranks: Ranks, device: torch.device) -> Any:
        """What Terms find of it in `Forward.loaded`, from what its phase left at `path`.

        Called once on each rank before the first iteration. Nothing, unless a class knows better:
        answers and frozen rows reach Terms by ways of their own.
        """
        return None

    def imagined(
        self, parameters: Mapping[str, torch.Tensor], rows: int, shape: tuple[int, ...]
    ) -> Any:
        """The like of what `load` makes, of any values, beside an embedder of these `parameters`,
        where `rows` identities were learned before. `shape` is that of an embedding, [d], or of
        what the network is given by this want (`Recipe.enters`).

        For dry runs, which read no file: its tensors count as memory of each rank.
        """
        return None

    def beside(self, rows: int, shape: tuple[int, ...]) -> int:
        """Bytes that its phase keeps on disk and `load` does not take; see `imagined`."""
        return 0


@dataclass(frozen=True)
class Answers(Want):
    """The previous model is run on each training image."""

    embeddings: bool = False
    """Its embedding of the image, [d]."""
    top_k: int | None = None
    """Number of old identities with the highest activations, with these; none: not wanted."""

    @classmethod
    def merge(cls, wants: Sequence["Answers"]) -> "Answers":
        """Raises ValueError where different numbers of identities are wanted."""
        sizes = {want.top_k for want in wants if want.top_k is not None}
        if len(sizes) > 1:
            raise ValueError(f"one recipe cannot select neighbourhoods of several sizes: {sizes}")
        return Answers(any(want.embeddings for want in wants), *sizes)


@dataclass(frozen=True)
class AnswersWithin(Want):
    """The previous model is run on each training image up to a place before its embedding.

    Along with training, whatever `teacher.mode` says: what a block makes of an image takes many
    times the image's memory.
    """

    place: str
    """See `trainer.entrance.Place`."""


@dataclass(frozen=True)
class FrozenRows(Want):
    """The classifier of the recipe's anchor with its rows, frozen."""


@dataclass(frozen=True)
class ClassMeans(Want):
    """Rows for the identities that the anchor does not know: the means of its embeddings of their
    images."""


def merged(wants: Iterable[Want]) -> tuple[Want, ...]:
    """One want of each class, in the order of their first appearance. Raises ValueError."""
    by_class: dict[type[Want], list[Want]] = {}
    for want in wants:
        by_class.setdefault(type(want), []).append(want)
    return tuple(kind.merge(own) for kind, own in by_class.items())
