"""What is drawn in each update and enters the network beside its images."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from data_shards.orders.order import rank_slice
from data_shards.settings import InputError
from trainer.backbones import Embedder
from trainer.entrance import Entrance, Passing
from trainer.heads.collectives import Ranks, gather_embeddings
from trainer.heads.margin_loss import Part
from trainer.methods.entering import Drawn, Entering
from trainer.replay.source import FeatureSource, numbers


@dataclass(frozen=True)
class Share:
    """What enters beside the images of a part of the global batch."""

    entrance: Entrance
    inputs: torch.Tensor
    """[n, ...] this rank's."""
    counts: list[int]
    """Every rank's number of them."""
    classes: torch.Tensor
    """[sum(counts)] int64, of all ranks."""
    part: Part | None

    def split(self, gathered: torch.Tensor, images: Sequence[int]) -> tuple[torch.Tensor, Drawn]:
        """Takes the embeddings apart that were gathered over the ranks, each of which gave those
        of its `images` first: [sum(images), d], and what Terms see of the drawn ones."""
        embeddings, drawn = apart(gathered, images, self.counts)
        return embeddings, Drawn(drawn, self.classes, self.part)


def apart(
    gathered: torch.Tensor, images: Sequence[int], drawn: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows [n, d] that each rank gave first for its `images`, then for what it has `drawn`:
    those of all images, and of all that is drawn."""
    sizes = [size for pair in zip(images, drawn, strict=True) for size in pair]
    own = gathered.split(sizes)
    return torch.cat(own[::2]), torch.cat(own[1::2])


class Drawing:
    """Shares out what is drawn: over the ranks, and over the parts of a batch, as images are.

    A function of (seed, iteration), at any number of ranks.
    """

    def __init__(
        self,
        entering: Entering,
        source: FeatureSource,
        embedder: Embedder,
        *,
        count: int,
        parts: int,
        old: int,
        ranks: Ranks,
        seed: int,
    ) -> None:
        """`count` inputs an update, where the recipe does not say. Raises InputError for a source
        of other identities than the `old` ones."""
        if source.rows != old:
            raise InputError(
                f"the generator draws inputs of {source.rows} identities, and {old} were learned "
                "before: run the steps before with the same method"
            )
        self._source, self._embedder, self._seed = source, embedder, seed
        self._place, self._ranks = entering.place, ranks
        self._count = entering.count or count
        whole = [rank_slice(self._count, rank, ranks.world) for rank in range(ranks.world)]
        self._slices = [
            [_within(own, rank_slice(own.stop - own.start, part, parts)) for own in whole]
            for part in range(parts)
        ]
        self._entrance: Entrance | None = None
        self._every: tuple[int, torch.Tensor, torch.Tensor] | None = None

    def share(self, iteration: int, number: int, images: torch.Tensor) -> Share:
        """Beside this rank's `images` [b, 3, H, W] of the part with this `number`."""
        device, slices = images.device, self._slices[number]
        if self._entrance is None:
            height, width = images.shape[2:]
            self._entrance = Entrance(self._embedder, self._place, (height, width))
        if self._every is None or self._every[0] != iteration:
            classes, noise = numbers(self._source, self._count, self._seed, iteration)
            self._every = iteration, classes.to(device), noise
        _, classes, noise = self._every
        own = slices[self._ranks.rank]
        inputs = self._source.features(classes[own], noise[own].to(device))
        return Share(
            entrance=self._entrance,
            inputs=inputs,
            counts=[part.stop - part.start for part in slices],
            classes=torch.cat([classes[part] for part in slices]),
            part=Part(number, classes) if len(self._slices) > 1 else None,
        )


def gather_numbers(numbers: torch.Tensor, ranks: Ranks, counts: list[int]) -> torch.Tensor:
    """`trainer.heads.collectives.gather_embeddings` of a number of each image: [b] → [B]."""
    return gather_embeddings(numbers[:, None], ranks, counts)[:, 0]


def _within(whole: slice, part: slice) -> slice:
    return slice(whole.start + part.start, whole.start + part.stop)


def joining(share: Share | None) -> AbstractContextManager[Passing | None]:
    """Within it, a forward pass has what is drawn enter, if anything is."""
    return nullcontext() if share is None else share.entrance.joined(share.inputs)
