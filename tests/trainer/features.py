"""Features of a known mixture, to train generators on."""

import torch

from trainer.replay.wgan import Generator
from trainer.replay.wgan_updates import Features

D = 8
_DEVIATIONS = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.3, 0.3, 0.3, 0.3])
"""Around the mean of a class."""


def means(classes: int = 12) -> torch.Tensor:
    """Of the mixture's classes, [C, 8]."""
    return 2 * torch.randn(classes, D, generator=torch.Generator().manual_seed(0))


def covariance() -> torch.Tensor:
    """Of each class, [8, 8]."""
    return torch.diag(_DEVIATIONS.square())


def mixture(first: int, last: int, count: int, dtype: torch.dtype = torch.float32) -> Features:
    """`count` features of each of the classes first <= c < last."""
    classes = torch.arange(first, last).repeat_interleave(count)
    drawn = torch.randn(len(classes), D, generator=torch.Generator().manual_seed(1 + first))
    return Features((means()[classes] + _DEVIATIONS * drawn).to(dtype), classes.numpy())


def drawn(generator: Generator, number: int, count: int = 4000) -> torch.Tensor:
    """So many generated features of a class, [count, 8]."""
    noise = torch.randn(count, generator.noise, generator=torch.Generator().manual_seed(number))
    return generator.features(torch.full((count,), number), noise)


def mean_error(generator: Generator, number: int) -> float:
    """How far the mean of generated features of a class is off, in deviations of the class."""
    off = drawn(generator, number).mean(dim=0) - means()[number]
    return float(torch.linalg.vector_norm(off) / covariance().trace().sqrt())


def covariance_error(generator: Generator, number: int) -> float:
    """How far their covariance is off, relative to its Frobenius norm."""
    off = torch.cov(drawn(generator, number).T) - covariance()
    return float(torch.linalg.matrix_norm(off) / torch.linalg.matrix_norm(covariance()))


def variance_ratio(generator: Generator, number: int) -> float:
    """Their variance over all dimensions together, 1 where it is right."""
    return float(torch.cov(drawn(generator, number).T).trace() / covariance().trace())
