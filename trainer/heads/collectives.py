"""The ranks that share a classifier, and the collectives it needs.

Convention: a tensor named ``gathered`` holds the global batch and is equal on every rank, and so
is its gradient. Functions on sharded rows sum their partial gradients over the ranks themselves.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a process group."""

    rank: int = 0
    world: int = 1
    group: dist.ProcessGroup | None = None
    """None: the default group, or no communication at all in a world of one."""
    exchanging: Callable[[], AbstractContextManager[Any]] = field(
        default=nullcontext, compare=False
    )
    """Context entered during each collective, including the time spent waiting for other ranks:
    to find stragglers, that time must not count as a rank's own work."""

    @classmethod
    def default(cls) -> "Ranks":
        """The default process group, or a world of one where there is none."""
        if not dist.is_initialized():
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Adds `tensor` up over the ranks, in place."""
        if self.world > 1:
            with self.exchanging():
                dist.all_reduce(tensor, group=self.group)
        return tensor

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elementwise maximum over the ranks, in place."""
        if self.world > 1:
            with self.exchanging():
                dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def gather(self, tensor: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Concatenates [counts[rank], ...] tensors in rank order: [sum(counts), ...].

        Padded to the longest, because gloo gathers only equal sizes.
        """
        if self.world == 1:
            return tensor
        longest = max(counts)
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        with self.exchanging():
            dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world > 1:
            with self.exchanging():
                dist.barrier(group=self.group)

    def broadcast_object(self, value: Any) -> Any:
        """Returns rank 0's value on every rank. For small control messages, not for tensors."""
        if self.world == 1:
            return value
        box = [value]
        with self.exchanging():
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]


class _GatherEmbeddings(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embeddings: torch.Tensor, ranks: Ranks, counts: list[int]
    ) -> torch.Tensor:
        start = sum(counts[: ranks.rank])
        ctx.own, ctx.world = slice(start, start + counts[ranks.rank]), ranks.world
        return ranks.gather(embeddings.detach(), counts)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad[ctx.own] * ctx.world, None, None  # the engine divides by the world size


def gather_embeddings(embeddings: torch.Tensor, ranks: Ranks, counts: list[int]) -> torch.Tensor:
    """Gathers every rank's embeddings [counts[rank], d] to [B, d], with autograd.

    The gradient of the gathered tensor is equal on every rank, so each rank keeps its own part;
    it is multiplied by the world size because the data-parallel engine averages the embedder's
    gradients over the ranks, where a single process would have summed them.
    """
    return _GatherEmbeddings.apply(embeddings, ranks, counts)
