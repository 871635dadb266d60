"""What this machine's processor multiplies itself, and what it could only imitate."""

import os
import platform

import torch

_WITHOUT = ("AVX512_CORE", "AVX512_CORE_VNNI")
"""Limits of oneDNN's ONEDNN_MAX_CPU_ISA under which it imitates bf16 by AVX-512."""


def multiplies_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether bf16 products pay on `device`: on a GPU, or a CPU with instructions for them.

    Another CPU takes 3 (AVX-512) to 80 times (AVX2) as long for them as for fp32's.
    """
    if torch.device(device).type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available():
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return True  # there oneDNN asks for the instructions themselves
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    if limit.upper() in _WITHOUT:
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def fallback(*keys: str) -> str:
    """The line that says that `keys` ask for bf16 in vain."""
    are = "are" if len(keys) > 1 else "is"
    return (
        f"{' and '.join(keys)} {are} bf16, for which this processor has no instructions: "
        "computed in fp32, many times as fast here and more exactly"
    )
