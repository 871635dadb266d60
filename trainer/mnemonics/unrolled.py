"""A few steps of training that the gradient goes back through, into the images trained on.

Mnemonics training (Liu et al. 2020): a temporary model begins as the step's model and is trained on
exemplars (Eq. 8); its loss on other images is a function of the exemplars' pixels, and its gradient
by them (Eq. 9) needs second derivatives of the training's loss. Nothing is approximated.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from trainer.heads.margin_loss import ClassifierSettings

HALF = 127.5
"""Half of the range of a pixel: images from -1 to 1, as networks see them, are p / HALF - 1."""

Weights = tuple[torch.Tensor, ...]
"""The temporary model's, in the order of ``Classified.named_parameters``."""


class Labelled(NamedTuple):
    """Images and their classes."""

    images: torch.Tensor
    """[n, 3, H, W] floating-point, from -1 to 1."""
    labels: torch.Tensor
    """[n] int64 classifier rows."""


class Classified(nn.Module):
    """A finished model as one network, from images to logits over all its rows: [n, C].

    It is put into evaluation mode: batch normalisation goes by the running statistics, which stay.
    A temporary model that normalised by its few exemplars would be another model than the one that
    it begins as, one image's gradient would depend on its neighbours in the batch, and the outer
    loss, whose batches are larger, would be of a third.
    """

    def __init__(
        self, embedder: nn.Module, rows: torch.Tensor, classifier: ClassifierSettings
    ) -> None:
        """`rows` [C, d] as they are trained. Margins do not take part: logits are those by which
        the model decides."""
        super().__init__()
        self.embedder, self.rows = embedder, nn.Parameter(rows)
        self._classifier = classifier
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`images` as in `Labelled`."""
        # a new tensor, which the embedder then normalises in place
        embeddings = self.embedder((images + 1) * HALF)
        settings = self._classifier
        return settings.inputs(embeddings) @ settings.directions(self.rows).T


def pixels(images: torch.Tensor) -> torch.Tensor:
    """Images of 8 bits [n, 3, H, W] as `Labelled` has them, float32: what `Embedder.pixels` makes
    of them."""
    return images.float().sub_(HALF).div_(HALF)


def rounded(images: torch.Tensor) -> torch.Tensor:
    """The nearest images of 8 bits: the inverse of `pixels`."""
    return (images * HALF + HALF).round_().clamp_(0, 255).to(torch.uint8)


def loss_of(network: Classified, weights: Weights, batch: Labelled) -> torch.Tensor:
    """The mean softmax cross-entropy over all rows (Eq. 2), of a `batch`."""
    names = (name for name, _ in network.named_parameters())
    logits = functional_call(network, dict(zip(names, weights, strict=True)), (batch.images,))
    return F.cross_entropy(logits, batch.labels)


def descended(
    network: Classified, weights: Weights, batch: Labelled, rate: float, graph: bool = True
) -> Weights:
    """The weights after one step of gradient descent (Eq. 8).

    With a `graph` they are functions of the `weights`, which require gradients, and the images.
    """
    slopes = torch.autograd.grad(
        loss_of(network, weights, batch), weights, create_graph=graph, materialize_grads=True
    )
    return tuple(weight - rate * slope for weight, slope in zip(weights, slopes, strict=True))


def initial(network: Classified) -> Weights:
    """The weights that a temporary model begins with."""
    return tuple(p.detach().clone().requires_grad_() for p in network.parameters())


def trained(network: Classified, batches: Sequence[Labelled], rate: float) -> Weights:
    """The weights after a step for each of `batches`, without a graph."""
    weights = initial(network)
    for batch in batches:
        weights = _apart(descended(network, weights, batch, rate, graph=False))
    return weights


def hypergradient(
    network: Classified,
    exemplars: torch.Tensor,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor, Labelled | None]],
    outer: Labelled,
    rate: float,
    recompute: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss on `outer` of the model trained on `exemplars`, and its gradient by them (Eq. 9).

    A step for each of `batches`: the places among `exemplars` [n, 3, H, W] of those it is on [k]
    and their labels [k], and other images that it is on and that stay. `rate` is alpha_2 of Eq. 8.
    With `recompute`, one step's activations are held at a time in place of all steps', and every
    step is computed once more; the gradient is the same but for the order of a sum.
    """
    exemplars = exemplars.detach().requires_grad_()
    held = [initial(network)]
    weights = held[0]
    for batch in batches:
        weights = descended(network, weights, _joined(exemplars, *batch), rate, not recompute)
        if recompute:
            weights = _apart(weights)
            held.append(weights)
    loss = loss_of(network, weights, outer)
    if not recompute:
        (slope,) = torch.autograd.grad(loss, (exemplars,), materialize_grads=True)
        return loss.detach(), slope
    by_weights = [*torch.autograd.grad(loss, weights, materialize_grads=True)]
    total = torch.zeros_like(exemplars)
    for before, batch in zip(held[-2::-1], reversed(batches), strict=True):
        after = descended(network, before, _joined(exemplars, *batch), rate)
        *by_weights, slope = torch.autograd.grad(
            after, (*before, exemplars), by_weights, materialize_grads=True
        )
        total += slope
    return loss.detach(), total


def _joined(
    exemplars: torch.Tensor, places: torch.Tensor, labels: torch.Tensor, others: Labelled | None
) -> Labelled:
    if others is None:
        return Labelled(exemplars[places], labels)
    images = torch.cat([exemplars[places], others.images])
    return Labelled(images, torch.cat([labels, others.labels]))


def _apart(weights: Weights) -> Weights:
    """The same values, of which nothing is known but them."""
    return tuple(weight.detach().requires_grad_() for weight in weights)
