"""Matrix products in fp32, or with bf16 factors and fp32 sums, on CPU and GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def _bf16_factors() -> Iterator[None]:
    """oneDNN rounds fp32 factors to bf16 itself, and returns the fp32 sums."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def logits_product(a: torch.Tensor, b: torch.Tensor, half: bool) -> torch.Tensor:
    """`a` @ `b` as fp32; with `half`, from factors rounded to bf16.

    The sums are never rounded: a logit near 64 would lose all but its whole number to bf16.
    """
    if not half:
        return a @ b
    if a.is_cuda:
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    with _bf16_factors():
        return a @ b


def gradient_product(a: torch.Tensor, b: torch.Tensor, half: bool) -> torch.Tensor:
    """`a` @ `b` as fp32; with `half`, factors and result are rounded to bf16."""
    return (a.bfloat16() @ b.bfloat16()).float() if half else a @ b
