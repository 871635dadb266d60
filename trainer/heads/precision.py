"""Matrix products in fp32, or with bf16 factors and fp32 sums, on CPU and GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_ONEDNN = torch.backends.mkldnn.is_available()
_AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"


@contextmanager
def _bf16_factors() -> Iterator[None]:
    """oneDNN may round fp32 factors to bf16 itself, and returns the fp32 sums."""
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a` [m, k] @ `b` [k, n], without autograd.

    In fp32 on a CPU by oneDNN's own kernels: PyTorch gives such products to MKL, which knows AMD's
    processors as AVX2 at most and takes up to 2.3 times as long there. Without AVX-512, MKL is the
    faster for all but a `b` whose columns lie in one piece. They round to fp32 alike.
    """
    if a.dtype != torch.float32 or a.is_cuda or not (_ONEDNN and a.numel() and b.numel()):
        return a @ b
    if _AVX2 and not b.T.is_contiguous():
        return a @ b
    return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")


def logits_product(a: torch.Tensor, b: torch.Tensor, half: bool) -> torch.Tensor:
    """`a` @ `b` as fp32; with `half`, from factors rounded to bf16.

    The sums are never rounded: a logit near 64 would lose all but its whole number to bf16. A CPU
    without bf16 matrix instructions (AMX) keeps fp32 factors, which cost it no more.
    """
    if not half:
        return product(a, b)
    if a.is_cuda:
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    with _bf16_factors():
        return a @ b


def gradient_product(a: torch.Tensor, b: torch.Tensor, half: bool) -> torch.Tensor:
    """`a` @ `b` as fp32; with `half`, factors and result are rounded to bf16."""
    return (a.bfloat16() @ b.bfloat16()).float() if half else product(a, b)
