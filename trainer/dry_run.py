"""A dry run of training on tensors without data: memory, floating-point work and collectives.

The product's own code runs under PyTorch's fake tensors (the ``meta`` device with a device's
name), as one rank of any world size. Nothing is allocated, computed or sent.
"""

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula

from trainer.heads.collectives import Ranks

Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Collective:
    """One collective call, as each rank makes it."""

    kind: str
    """``all-reduce`` or ``all-gather``."""
    bytes: int
    """What this rank gives: the tensor reduced, or its own part of what is gathered."""

    def sent(self, world: int) -> float:
        """Bytes that each of `world` ranks sends, by the ring algorithm."""
        if self.kind == "all-reduce":
            return 2 * (world - 1) / world * self.bytes
        return (world - 1) * self.bytes


@dataclass(frozen=True)
class DryRunRanks(Ranks):
    """One rank of a world that is not there: shapes are as they would be, calls are recorded."""

    calls: list[Collective] = field(default_factory=list, compare=False)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._record("all-reduce", tensor)

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._record("all-reduce", tensor)

    def gather(self, tensor: torch.Tensor, counts: list[int]) -> torch.Tensor:
        self._record("all-gather", tensor.new_empty((max(counts), *tensor.shape[1:])))
        return tensor.new_empty((sum(counts), *tensor.shape[1:]))

    def _record(self, kind: str, tensor: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            self.calls.append(Collective(kind, tensor.numel() * tensor.element_size()))
        return tensor


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _linear_flops(a: Any, b: Any, *_: Any, **__: Any) -> int:
    """Of [m, k] times the transpose of [n, k], given their shapes."""
    return 2 * a[0] * a[1] * b[0]


@dataclass(frozen=True)
class Operation:
    """One kernel."""

    flops: float
    """Of matrix products and convolutions; 0 for everything else."""
    bytes: float
    """Read and written."""
    precision: Precision = "fp32"
    """What it computes with, where it is a product; ``tf32`` for a convolution in fp32, because
    that is PyTorch's default on GPUs."""


class DryRun(TorchDispatchMode):
    """Within it, PyTorch's operations on the CPU are counted and compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        """Those since the last `mark`."""
        self.held, self.peak = 0, 0
        """Bytes of all tensors that are alive, and the most since the last `mark`."""
        self.hits: dict[int, float] = {}
        """The share of a mask that ``nonzero`` finds, by the mask's dimensions: it cannot look."""
        self.values = 0
        """How many different values ``unique`` can find at most."""
        self._fake = FakeTensorMode()
        self._known: set[int] = set()

    def mark(self) -> int:
        """Starts counting anew; returns the bytes held."""
        self.operations, self.peak = [], self.held
        return self.held

    def __enter__(self) -> "DryRun":
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        decided = self._decided(func, args)
        out = func(*args, **kwargs) if decided is None else decided
        made = _tensors(out)
        for tensor in made:
            if not tensor.is_sparse:  # its parts are held already
                self._hold(tensor.untyped_storage())
        if not _only_looks(func):
            self._count(func, args, kwargs, out, made)
        return out

    def _decided(self, func: Any, args: tuple) -> Any:
        """The result of an operation whose shape or value depends on data; else None."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return True  # what is asked of data is whether it is right
        if func is torch.ops.aten.nonzero.default:
            (mask,) = args
            found = round(mask.numel() * self.hits.get(mask.dim(), 0.0))
            return mask.new_empty((found, mask.dim()), dtype=torch.int64)
        if func is torch.ops.aten._unique2.default:
            given = args[0]
            different = given.new_empty(min(given.numel(), self.values))
            return different, torch.empty_like(given), given.new_empty(0)
        return None

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)

        def let_go() -> None:
            self._known.discard(key)
            self.held -= size

        weakref.finalize(storage, let_go)

    def _count(
        self, func: Any, args: tuple, kwargs: dict[str, Any], out: Any, made: list[torch.Tensor]
    ) -> None:
        given = _tensors((args, kwargs))
        moved = sum(t.numel() * t.element_size() for t in [*given, *made])
        if func is torch.ops.mkldnn._linear_pointwise.default:  # it lays its factors out anew
            scratch = sum(4 * t.numel() for t in given if not t.is_contiguous())
            self.peak = max(self.peak, self.held + scratch)
        flops = flop_registry.get(func._overloadpacket)
        if flops is None:
            self.operations.append(Operation(0, moved))
            return
        precision: Precision = "tf32" if "convolution" in func.name() else "fp32"
        if given[0].dtype == torch.bfloat16 or _rounded_factors():
            precision = "bf16"
        self.operations.append(Operation(flops(*args, **kwargs, out_val=out), moved, precision))


def _rounded_factors() -> bool:
    """Whether oneDNN is told to round fp32 factors of products to bf16."""
    setting: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return setting == "bf16"


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _only_looks(func: Any) -> bool:
    """Whether an operation returns a view or uninitialised memory, so that nothing is moved."""
    returned = [value.alias_info for value in func._schema.returns]
    view = any(alias is not None and not alias.is_write for alias in returned)
    return view or "empty" in func.name()
