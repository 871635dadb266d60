"""Which kernels compute here: only the same ones agree to the last digit."""

import os
import re
from pathlib import Path

import torch


def kernels() -> str:
    """Names this process's CPU kernels: PyTorch's, oneDNN's limit, and the processor's vendor.

    MKL chooses its code by the vendor, PyTorch and oneDNN by the instructions.
    """
    found = re.search(r"vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "all")
    return f"{torch.backends.cpu.get_cpu_capability()}, {limit}, {found[1] if found else 'unknown'}"
