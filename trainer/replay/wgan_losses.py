"""The losses of the conditional Wasserstein GAN (generative feature replay, Eqs. 1 to 3).

Features are vectors, [n, d], or have channels, height and width, and are looked at as the vectors
of these numbers. All losses are summed over the samples at hand: divided by the global batch they
can be added up over the ranks, whatever part of the batch each has.
"""

from collections.abc import Callable

import torch

Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A critic: features [n, d] and their classes [n] → scores [n]."""


def critic_loss(
    critic: Scores, real: torch.Tensor, generated: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """Eq. 1: how much higher `generated` features [n, d] score than `real` ones [n, d], both of
    `classes` [n]. The critic makes it small: minus it is n times the Wasserstein distance, as far
    as the critic sees it."""
    return (critic(generated, classes) - critic(real, classes)).sum()


def gradient_penalty(
    critic: Scores,
    real: torch.Tensor,
    generated: torch.Tensor,
    classes: torch.Tensor,
    share: torch.Tensor,
) -> torch.Tensor:
    """(|grad D(c, x)| - 1)^2 at a point between each real and generated feature, `share` [n, 1] of
    the way (Gulrajani et al. 2017, Eq. 3).

    Of each sample's own gradient: the critic has no batch normalisation, so that the gradient of
    the sum is each one's. Both features are of one class, and so is what lies between them.
    """
    share = share.view(-1, *[1] * (real.dim() - 1))
    between = (real + share * (generated - real)).detach().requires_grad_()
    scores = critic(between, classes).sum()
    (slope,) = torch.autograd.grad(scores, between, create_graph=True)
    return (torch.linalg.vector_norm(slope.flatten(1), dim=1) - 1).square().sum()


def generator_loss(critic: Scores, generated: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Eq. 2: minus the scores of `generated` features [n, d] of `classes` [n]."""
    return -critic(generated, classes).sum()


def replay_alignment(generated: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Squared distances between features [n, d] of old classes and what the generator of the step
    before makes of the same noise.

    Eq. 3 sums over old classes the mean over z. Where n pairs are drawn, every class equally
    often, its unbiased estimate is this, times the number of old classes, over n: it grows with
    the classes, as in the paper, while its cost does not.
    """
    return (generated - before).square().sum()
