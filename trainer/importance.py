"""How much each parameter of a network matters to what the network has learned.

All measures are means over samples of something of each sample's own gradient. The gradient of a
batch's mean loss will not do: samples' gradients point to all sides and cancel, so that its square
is too small by about the batch's size, and its absolute value by about the root of that.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from trainer.arrays import read_arrays, write_arrays

Measure = Literal["empirical-fisher", "fisher", "sensitivity"]
"""empirical-fisher: (d log p(y | x) / d theta_i)^2, y the image's own class. fisher: the same,
expected over all classes by the network's own p(y | x), the diagonal of the Fisher information.
sensitivity: |d ||f(x)||^2 / d theta_i|, f the logits (MAS)."""
Tensors = Mapping[str, torch.Tensor]
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Images [b, 3, H, W] and the places [b] int64 of their classes among the logits."""

_COUNT, _PASSED = "samples", "passed"


@dataclass(frozen=True)
class Consolidated:
    """What a finished step holds on to. Both by the parameter's name."""

    importance: Tensors
    """Of each parameter, 0 or more: summed over the steps so far."""
    parameters: Tensors
    """theta*, as the step left them."""


def importance_sums(
    embedder: torch.nn.Module,
    logits: Callable[[torch.Tensor], torch.Tensor],
    measure: Measure,
    batches: Batches,
    so_far: Tensors | None = None,
) -> dict[str, torch.Tensor]:
    """The measure summed over all samples, float64, by the parameter's name, on top of `so_far`.

    `logits` maps embeddings [1, d] to [1, c]. The embedder is in evaluation mode, so that a sample
    is a function of itself alone. A sample at a time goes through the network: the sums do not
    depend on how `batches` are cut, bit for bit, nor on how many calls go on from one another.
    """
    if embedder.training:
        raise ValueError("importance is that of a finished network: call eval() first")
    names, parameters = zip(*embedder.named_parameters(), strict=True)
    sums = [
        torch.zeros_like(p, dtype=torch.float64) if so_far is None else so_far[name].clone()
        for name, p in zip(names, parameters, strict=True)
    ]
    with torch.enable_grad():
        for images, places in batches:
            for image, place in zip(images, places.tolist(), strict=True):
                said = logits(embedder(image[None]))[0]
                for share, value in _values(said, place, measure):
                    slopes = torch.autograd.grad(value, parameters, retain_graph=True)
                    for total, slope in zip(sums, slopes, strict=True):
                        exact = slope.double()
                        if measure == "sensitivity":
                            total += exact.abs()
                        else:
                            total.addcmul_(exact, exact, value=share)
    return dict(zip(names, sums, strict=True))


def _values(
    logits: torch.Tensor, place: int, measure: Measure
) -> Iterator[tuple[float, torch.Tensor]]:
    """What is differentiated of an image with `logits` [c] and its class' place, each with the
    share that it has."""
    if measure == "sensitivity":
        yield 1.0, logits.square().sum()
        return
    log_shares = F.log_softmax(logits, dim=0)
    if measure == "empirical-fisher":
        yield 1.0, log_shares[place]
        return
    yield from zip(log_shares.detach().exp().tolist(), log_shares, strict=True)


def num_values(measure: Measure, classes: int) -> int:
    """How many values of each image are differentiated, where the logits are of `classes`."""
    return classes if measure == "fisher" else 1


def consolidated(
    parts: Iterable[tuple[Tensors, int]], parameters: Tensors, before: Tensors | None
) -> tuple[Consolidated, int]:
    """The parts' mean on top of the importance `before`, and how many samples it is of.

    A part is sums with the number of their samples; `parameters` are the step's, by name. Parts are
    added in their order, in float64: sums in another order would round differently.
    """
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}
    count = 0
    for sums, number in parts:
        count += number
        for name, own in total.items():
            own += sums[name]
    for name, own in total.items():
        own /= max(1, count)
        if before is not None:
            own += before[name]
    return Consolidated({name: own.float() for name, own in total.items()}, parameters), count


def write_sums(path: Path, sums: Tensors, count: int, model: str) -> None:
    """Writes a part: `sums` over so many samples, with the fingerprint of the `model`."""
    write_arrays(path, {**_arrays(sums), _COUNT: np.array([count])}, model)


def read_sums(path: Path, model: str) -> tuple[dict[str, torch.Tensor], int]:
    """Reads a part. Raises InputError when it is damaged or of another model."""
    arrays = read_arrays(path, model, (_COUNT,))
    count = int(arrays.pop(_COUNT)[0])
    return {name: torch.from_numpy(own) for name, own in arrays.items()}, count


@dataclass(frozen=True)
class Unfinished:
    """A part on the way."""

    sums: Tensors | None = None
    count: int = 0
    """Samples that they are over."""
    passed: int = 0
    """Samples that need not be looked at again: these, and damaged ones."""

    def write(self, path: Path, model: str) -> None:
        """Writes it, with the fingerprint of the `model`."""
        assert self.sums is not None
        numbers = {_COUNT: np.array([self.count]), _PASSED: np.array([self.passed])}
        write_arrays(path, {**_arrays(self.sums), **numbers}, model)

    @classmethod
    def read(cls, path: Path, model: str) -> "Unfinished":
        """Reads it. Raises InputError when it is damaged or of another model."""
        arrays = read_arrays(path, model, (_COUNT, _PASSED))
        count, passed = (int(arrays.pop(name)[0]) for name in (_COUNT, _PASSED))
        return cls({name: torch.from_numpy(own) for name, own in arrays.items()}, count, passed)


def _arrays(sums: Tensors) -> dict[str, NDArray[np.float64]]:
    return {name: own.contiguous().numpy() for name, own in sums.items()}
