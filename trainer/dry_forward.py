"""What Terms see of a part of a batch, in dry runs: of the previous model and of what is drawn."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from data_shards.orders.order import rank_slice
from trainer.backbones import EmbedderSettings
from trainer.drawing import apart, gather_numbers
from trainer.entrance import Entrance, shape_at
from trainer.heads.collectives import Ranks
from trainer.heads.margin_loss import Part
from trainer.heads.neighbourhood import sharded_top_k
from trainer.methods.discriminative import Expert
from trainer.methods.entering import Drawn, Entering, Within
from trainer.methods.forward import OldClassifier, Teacher
from trainer.methods.recipe import Recipe
from trainer.methods.wants import Answers, AnswersWithin, Want
from trainer.optimizers import TrainingSettings


def entered(entering: Entering | None, training: TrainingSettings, world: int) -> list[list[int]]:
    """How many drawn inputs go through in each part of a batch, by rank; 0 where nothing enters."""
    count = 0 if entering is None else entering.count or training.batch
    sizes = [_size(rank_slice(count, rank, world)) for rank in range(world)]
    number = training.accumulate
    return [[_size(rank_slice(n, part, number)) for n in sizes] for part in range(number)]


def _size(own: slice) -> int:
    return int(own.stop - own.start)


def joined(entrance: Entrance | None, count: int) -> AbstractContextManager[Any]:
    """Within it, a forward pass has `count` inputs of any values enter, if anything does."""
    if entrance is None:
        return nullcontext()
    return entrance.joined(torch.empty((count, *entrance.shape)))


def split(
    gathered: torch.Tensor, images: list[int], drawn: list[int], part: int | None, total: int
) -> tuple[torch.Tensor, Drawn]:
    """As `trainer.drawing.Share.split`, with any classes, where `total` inputs are drawn in the
    update, and this is a `part` of them only, if it is."""
    own, of_drawn = apart(gathered, images, drawn)
    classes, every = (torch.empty(n, dtype=torch.int64) for n in (len(of_drawn), total))
    return own, Drawn(of_drawn, classes, None if part is None else Part(part, every))


def asked_teacher(
    recipe: Recipe,
    old: OldClassifier | None,
    ranks: Ranks,
    counts: list[int],
    *,
    online: bool,
) -> Teacher:
    """What the previous model says, as `CachedTeacher` and `OnlineTeacher` gather it."""
    if old is None:
        return Teacher()
    rows, wanted = old.trained().rows, recipe.want(Answers)
    if wanted is None:
        return Teacher(rows=rows)
    own, (_, dimension), top_k = counts[ranks.rank], rows.weight.shape, wanted.top_k
    embeddings = classes = activations = None
    if wanted.embeddings or online:
        embeddings = ranks.gather(torch.empty((own, dimension)), counts)
    if top_k is not None and online:
        assert embeddings is not None
        with torch.no_grad():
            classes, activations = sharded_top_k(embeddings, rows, top_k)
    elif top_k is not None:
        classes = ranks.gather(torch.empty((own, top_k), dtype=torch.int64), counts)
        activations = ranks.gather(torch.empty((own, top_k)), counts)
    return Teacher(embeddings if wanted.embeddings else None, classes, activations, rows)


def asked_expert(
    recipe: Recipe, dimension: int, ranks: Ranks, counts: list[int]
) -> torch.Tensor | None:
    """What `Forward.expert` is, of any values, for `counts` images by rank."""
    if recipe.want(Expert) is None:
        return None
    return ranks.gather(torch.empty((counts[ranks.rank], dimension)), counts)


def at_entrance(
    recipe: Recipe, shapes: Mapping[type[Want], tuple[int, ...]], ranks: Ranks, counts: list[int]
) -> Within | None:
    """What `Forward.within` is, of any values, for `counts` images by rank."""
    entering = recipe.enters
    if entering is None or recipe.want(AnswersWithin) is None:
        return None
    shape = counts[ranks.rank], *shapes[entering.by]
    gather = partial(gather_numbers, ranks=ranks, counts=counts)
    return Within(torch.empty(shape, requires_grad=True), torch.empty(shape), gather)


def shapes_of_wants(
    recipe: Recipe,
    dimension: int,
    embedder: EmbedderSettings | None,
    size: tuple[int, int] | None,
) -> dict[type[Want], tuple[int, ...]]:
    """The shape that each want is asked about, see `Want.imagined`."""
    shapes: dict[type[Want], tuple[int, ...]] = {type(want): (dimension,) for want in recipe.wants}
    if (entering := recipe.enters) is not None:
        assert embedder is not None and size is not None
        shapes[entering.by] = shape_at(embedder, entering.place, size)
    return shapes
