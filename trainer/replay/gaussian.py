"""A normal distribution of each identity's embeddings: "Gaussian class prototypes" (Liu et al.
2020, "Generative feature replay", Sec. 4.1).

An identity has fewer images than an embedding has dimensions as a rule, and the covariance of n
vectors has a rank of n - 1 at most. It is therefore shrunk: of n vectors in d dimensions with
scatter A = sum (u - mean)(u - mean)' it is

    (A + d P) / (n - 1 + d),

where P is what is expected without them: P counts as d vectors do. That is a posterior mean under
an inverse-Wishart prior (Gelman et al., "Bayesian data analysis", Sec. 3.6), and of the form of
regularised discriminant analysis (Friedman 1989). P of an identity is the covariance within all of
its step's identities. That one is shrunk in the same way, from N images of C identities, N - C for
n - 1, towards the multiple of the unit matrix that has its trace. So all have full rank, and with
many images they are what they would be without shrinking. Variances alone are of one dimension
each: d is then 1.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.settings import InputError
from trainer.checkpoint import Folder
from trainer.replay.source import generator_files, read_generator

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]
Tensors = Mapping[str, torch.Tensor]
Covariance = Literal["full", "shared", "diagonal"]
"""full: each identity's own, d (d + 1) / 2 numbers. shared: one of all identities together.
diagonal: each identity's own variances, d numbers, as if dimensions were independent."""
_LEAST = 1e-12
"""A variance for embeddings that are all the same."""
_MOST = 2_000_000_000
"""Bytes of the squares that are factored."""
_CHUNK = 64
"""Factors [d, d] that are copied at a time."""


@dataclass(frozen=True)
class Gaussian:
    """Draws from the normal distributions."""

    covariance: Covariance
    means: torch.Tensor
    """[C, d] float32"""
    factor: torch.Tensor
    """Float32: the covariances' lower Cholesky factors [C, d, d], the one of all [d, d], or the
    roots of variances [C, d]."""

    @property
    def rows(self) -> int:
        """See `FeatureSource`."""
        return len(self.means)

    @property
    def noise(self) -> int:
        """As many numbers as an embedding has."""
        return self.means.shape[1]

    def features(self, classes: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """See `FeatureSource`."""
        if self.covariance == "diagonal":
            return self.means[classes] + self.factor[classes] * noise
        if self.covariance == "shared":
            return self.means[classes] + noise @ self.factor.T
        pairs = zip(classes.split(_CHUNK), noise.split(_CHUNK), strict=True)
        apart = [torch.bmm(self.factor[own], z[:, :, None])[:, :, 0] for own, z in pairs]
        return self.means[classes] + torch.cat(apart)


@dataclass(frozen=True)
class Gaussians:
    """A normal distribution of each identity; see `GeneratorKind`."""

    covariance: Covariance = "full"
    of: ClassVar[str] = "gaussian"

    def files(self, state: Tensors) -> tuple[dict[str, Any], dict[str, Any]]:
        """Files and card of the folder that `read` and `state` take."""
        rows, dimension = state["means"].shape
        facts = {"covariance": self.covariance, "rows": rows, "dimension": dimension}
        return generator_files(self, state, **facts)

    def state(self, folder: Folder) -> dict[str, torch.Tensor]:
        """What `grown` made. Raises DamagedError, InputError."""
        return read_generator(folder, self, covariance=self.covariance)

    def read(self, folder: Folder, device: torch.device) -> Gaussian:
        """See `GeneratorKind`."""
        state = self.state(folder)
        with folder.intact("generator.safetensors"):
            return self.source(state, device)

    def source(self, state: Tensors, device: torch.device) -> Gaussian:
        """What draws by a state."""
        factor = _factor(state, self.covariance)
        return Gaussian(self.covariance, state["means"].to(device), factor.to(device))

    def imagined(self, rows: int, shape: tuple[int, ...]) -> Gaussian:
        """See `GeneratorKind`. Raises InputError for covariances of what a block makes that are
        too large to be computed."""
        dimension = math.prod(shape)
        if len(shape) > 1:
            self.check(rows, dimension)
        shapes = {
            "full": (rows, dimension, dimension),
            "shared": (dimension, dimension),
            "diagonal": (rows, dimension),
        }
        factor = torch.empty(shapes[self.covariance])
        return Gaussian(self.covariance, torch.empty(rows, dimension), factor)

    def check(self, rows: int, dimension: int) -> None:
        """Raises InputError where covariances of `dimension` numbers take more than 2 GB."""
        squares = {"full": rows, "shared": 1, "diagonal": 0}[self.covariance]
        size = 8 * squares * dimension**2
        if size > _MOST:
            raise InputError(
                f"covariance={self.covariance} of {dimension:,} numbers takes {size / 1e9:,.1f} GB "
                "in double precision: set covariance=diagonal, generator=wgan, or at to a later "
                "block"
            )

    def beside(self, rows: int, shape: tuple[int, ...]) -> int:
        """See `GeneratorKind`."""
        return 0


def moments(vectors: NDArray[np.float32], rows: Ids, covariance: Covariance) -> dict[str, Any]:
    """Of `vectors` [n, d], all that there are of their identities `rows` [n], in float64: each
    identity's row, number, mean, and scatter around it, as lower triangles or their diagonals.

    Of a shared covariance, the identities' scatters are added up.
    """
    found, place = np.unique(rows, return_inverse=True)
    dimension = vectors.shape[1]
    lower = np.tril_indices(dimension)
    size = dimension if covariance == "diagonal" else len(lower[0])
    means = np.zeros((len(found), dimension))
    scatter = np.zeros((1 if covariance == "shared" else len(found), size))
    for number in range(len(found)):
        own = vectors[place == number].astype(np.float64)
        means[number] = own.mean(axis=0)
        apart = own - means[number]
        square = (apart**2).sum(axis=0) if covariance == "diagonal" else (apart.T @ apart)[lower]
        scatter[0 if covariance == "shared" else number] += square
    counts = np.bincount(place, minlength=len(found)).astype(np.int64)
    return {"rows": found, "counts": counts, "means": means, "scatter": scatter}


def grown(
    before: Tensors | None,
    parts: Iterable[Arrays],
    first: int,
    last: int,
    covariance: Covariance,
) -> dict[str, torch.Tensor]:
    """The state of the identities 0 <= row < `last`: those below `first` as they were `before`,
    the others by the `moments` in `parts`.

    A state has ``means`` [C, d] float32, and float32 ``factors`` [C, d (d + 1) / 2], lower
    triangles, or ``deviations`` [C, d]; or of a shared covariance what it is made of and grows by:
    float64 ``scatter`` [d (d + 1) / 2] of how many ``degrees`` [1]. Parts are added in their order:
    sums in another order would round differently. Raises InputError for an identity without an
    image, and for embeddings of another dimension than those before.
    """
    held = list(parts)
    state = {} if before is None else dict(before)
    if held:
        rows, counts, means, scatter = (
            np.concatenate([part[name] for part in held])
            for name in ("rows", "counts", "means", "scatter")
        )
        lacking = np.setdiff1d(np.arange(first, last), rows)
        if len(lacking):
            raise InputError(f"classifier row {lacking[0]} has no image to draw its features by")
        degrees = int(counts.sum()) - len(rows)
        new = {"means": torch.from_numpy(means).float()}
        if covariance == "shared":
            new["scatter"] = torch.from_numpy(scatter.sum(axis=0))
            new["degrees"] = torch.tensor([degrees])
        elif covariance == "full":
            new["factors"] = torch.from_numpy(_factors(scatter, counts, degrees)).float()
        else:
            new["deviations"] = torch.from_numpy(_deviations(scatter, counts, degrees)).float()
        state = _behind(state, new)
    known = len(state["means"]) if state else 0
    if known != last:
        raise InputError(f"features of {known} identities can be drawn, and there are {last}")
    return state


def _behind(
    state: dict[str, torch.Tensor], new: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`state` with what is new: identities behind those that it has, sums on top."""
    if not state:
        return new
    was, now = state["means"].shape[1], new["means"].shape[1]
    if was != now:
        raise InputError(
            f"features of earlier identities have {was} numbers, and embeddings are {now} long "
            "now: replay needs the same embedder.dimension in all steps"
        )
    summed = {name: state[name] + new[name] for name in ("scatter", "degrees") if name in new}
    listed = ("means", "factors", "deviations")
    return {name: torch.cat([state[name], new[name]]) for name in listed if name in new} | summed


def _factors(scatter: Array, counts: Ids, degrees: int) -> Array:
    """The lower Cholesky factors [m, d (d + 1) / 2] of identities with `scatter` likewise."""
    whole = pooled(_square(scatter.sum(axis=0)), degrees)
    lower = np.tril_indices(len(whole))
    factors = np.empty_like(scatter)
    for number, (own, count) in enumerate(zip(scatter, counts, strict=True)):
        factors[number] = np.linalg.cholesky(shrunk(_square(own), count - 1, whole))[lower]
    return factors


def _deviations(scatter: Array, counts: Ids, degrees: int) -> Array:
    """The roots of variances [m, d] of identities whose squares add up to `scatter` likewise."""
    average = max(_LEAST, scatter.sum() / max(1, degrees) / scatter.shape[1])
    whole = (scatter.sum(axis=0) + average) / (degrees + 1)
    return np.sqrt((scatter + whole) / counts[:, None])


def pooled(scatter: Array, degrees: int) -> Array:
    """The covariance [d, d] within identities: `scatter` of so many `degrees` of freedom, shrunk
    towards the multiple of the unit matrix with its trace."""
    average = max(_LEAST, np.trace(scatter) / max(1, degrees) / len(scatter))
    return shrunk(scatter, degrees, average * np.eye(len(scatter)))


def shrunk(scatter: Array, degrees: int, expected: Array) -> Array:
    """A covariance [d, d] of full rank from a `scatter` of so many `degrees` of freedom, where
    `expected` counts as d vectors."""
    return (scatter + len(scatter) * expected) / (degrees + len(scatter))


def _square(lower: Array) -> Array:
    """The symmetric matrix [d, d] with a `lower` triangle [d (d + 1) / 2]."""
    dimension = int((np.sqrt(8 * len(lower) + 1) - 1) / 2 + 0.5)
    whole = np.zeros((dimension, dimension))
    whole[np.tril_indices(dimension)] = lower
    return whole + np.tril(whole, -1).T


def _factor(state: Tensors, covariance: Covariance) -> torch.Tensor:
    """What noise is multiplied by; see `Gaussian`."""
    if covariance == "diagonal":
        return state["deviations"]
    rows, dimension = state["means"].shape
    if covariance == "shared":
        whole = pooled(_square(state["scatter"].numpy()), int(state["degrees"]))
        return torch.from_numpy(np.linalg.cholesky(whole)).float()
    factor = torch.zeros(rows, dimension, dimension)
    down, across = torch.tril_indices(dimension, dimension)
    factor[:, down, across] = state["factors"]
    return factor
