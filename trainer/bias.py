"""Fitting BiC's two numbers on held-out images: a convex problem, solved to its end in float64."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

_STEPS = 200
"""Newton steps; ten are usual."""
_STEEP = 1e-12
"""Length of the gradient of a mean loss that counts as none."""


class Sample(NamedTuple):
    """What n held-out images' logits come down to, where the m new classes' are corrected."""

    rest: torch.Tensor
    """[n] log-sum-exp of the old classes' logits, as they are corrected already."""
    new: torch.Tensor
    """[n, m] the new classes' logits."""
    target: torch.Tensor
    """[n] the logit of the image's class, where that is an old one."""
    place: torch.Tensor
    """[n] int64, the image's class among the new ones; -1: an old one."""


def samples_of(
    logits: torch.Tensor, labels: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor
) -> Sample:
    """The `logits` [n, C] of images of classes `labels` [n], whose first classes, as many as
    `alpha` and `beta` have numbers, are old and corrected by them. In float64."""
    logits, old = logits.double(), len(alpha)
    corrected = logits[:, :old] * alpha.double() + beta.double()
    of_old = labels < old
    target = corrected.gather(1, torch.where(of_old, labels, 0)[:, None])[:, 0]
    return Sample(
        rest=corrected.logsumexp(dim=1),
        new=logits[:, old:],
        target=target,
        place=torch.where(of_old, -1, labels - old),
    )


def together(parts: Sequence[Sample]) -> Sample:
    """All images of `parts`."""
    return Sample(*(torch.cat(each) for each in zip(*parts, strict=True)))


def fit(sample: Sample, decay: float) -> tuple[float, float]:
    """alpha and beta that `sample` is most likely under: the new classes' logits are
    alpha z + beta in a softmax over all classes (BiC, Eq. 5 and 6).

    Of the mean cross-entropy, and decay/2 times their squared distance from 1 and 0, without which
    they would grow without end where held-out images are told apart perfectly. It is convex in
    both, so Newton's steps, each halved until the loss falls, end at its one minimum.
    """
    at = torch.tensor([1.0, 0.0], dtype=torch.float64)
    value, slope, curve = _loss(sample, at, decay)
    for _ in range(_STEPS):
        if torch.linalg.vector_norm(slope) < _STEEP:
            break
        step = torch.linalg.solve(curve, slope)
        share = 1.0
        while share > 1e-10:
            there = at - share * step
            found = _loss(sample, there, decay)
            if found[0] <= value:
                break
            share /= 2
        else:  # no loss below this one can be told from it
            break
        at, (value, slope, curve) = there, found
    alpha, beta = at.tolist()
    return alpha, beta


def _loss(
    sample: Sample, at: torch.Tensor, decay: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, its gradient [2] and its second derivatives [2, 2]."""
    (alpha, beta), z = at, sample.new
    # of the new classes together: their log-sum-exp, and z's mean and mean square among them
    logits = alpha * z + beta
    mine = logits.logsumexp(dim=1)
    shares = (logits - mine[:, None]).exp()
    mean, square = (shares * z).sum(dim=1), (shares * z * z).sum(dim=1)
    every = torch.logaddexp(sample.rest, mine)
    new = (mine - every).exp()  # the probability that the image is of a new class
    is_new = sample.place >= 0
    own = z.gather(1, sample.place.clamp_min(0)[:, None])[:, 0]
    target = torch.where(is_new, alpha * own + beta, sample.target)
    gradient = torch.stack([new * mean - own * is_new, new - is_new.double()])
    # the covariance of (z, 1), which is (0, 0) for old classes
    first = new * square - (new * mean) ** 2
    mixed = new * mean - new * new * mean
    second = new - new * new
    off = at - at.new_tensor([1.0, 0.0])
    loss = (every - target).mean() + decay / 2 * off.square().sum()
    curve = torch.stack([first.mean(), mixed.mean(), mixed.mean(), second.mean()]).view(2, 2)
    return loss, gradient.mean(dim=1) + decay * off, curve + decay * torch.eye(2).double()
