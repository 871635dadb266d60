"""The elementwise work between the classifier's products, in plain PyTorch and in Triton.

Both compute the same. On a GPU a chain of elementwise operations reads and writes the logits once
each; Triton's kernels read them twice and write them once on the way forward, and once each on the
way back. On a CPU a block of logits lies in the cache, and the plain chain is as good.
"""

import torch


def exponentials(
    logits: torch.Tensor,
    inverse: torch.Tensor | None,
    column: torch.Tensor,
    valid: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """exp(x - top) [B, n] in place of `logits`, top [B] = max x, and the sum of exp(x - top) [B].

    x is `logits` times `inverse` [n] (none: as they are), without the target at `column` [B] int64
    (beyond 0..n-1: elsewhere) and without columns that are not `valid` [n] (none: all are).
    """
    if fused(logits):
        from trainer.heads.triton_kernels import triton_exponentials

        return triton_exponentials(logits, inverse, column, valid)
    if inverse is not None:
        logits.mul_(inverse)
    place, here = _place(column, logits.shape[1])
    logits.scatter_(1, place, torch.where(here, -torch.inf, logits.gather(1, place)))
    if valid is not None:
        logits.masked_fill_(~valid, -torch.inf)
    top = logits.amax(dim=1).clamp_min(torch.finfo(logits.dtype).min)
    logits.sub_(top[:, None]).exp_()
    return logits, top, logits.sum(dim=1)


def logits_gradient(
    exponents: torch.Tensor,
    factor: torch.Tensor,
    push: torch.Tensor,
    inverse: torch.Tensor | None,
    column: torch.Tensor,
) -> torch.Tensor:
    """The gradient of the products [B, n], in place of `exponents`.

    Each sample's exponentials times its `factor` [B], its target's place taken by `push` [B], and
    columns times `inverse` [n].
    """
    if fused(exponents):
        from trainer.heads.triton_kernels import triton_logits_gradient

        return triton_logits_gradient(
            exponents=exponents, factor=factor, push=push, inverse=inverse, column=column
        )
    exponents.mul_(factor[:, None])
    place, here = _place(column, exponents.shape[1])
    exponents.scatter_(1, place, torch.where(here, push[:, None], exponents.gather(1, place)))
    return exponents if inverse is None else exponents.mul_(inverse)


def fused(tensor: torch.Tensor) -> bool:
    """Whether Triton's kernels run where `tensor` is."""
    return tensor.is_cuda


def _place(column: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`column` [B] as an index that is always good [B, 1], and whether it was one."""
    column = column[:, None]
    return column.clamp(0, width - 1), (column >= 0) & (column < width)
