"""Claims about numbers and memory hold with a lesser processor's kernels, too.

PyTorch and oneDNN can be told to use the instructions of an older processor: the tests that saw a
difference once, and cheap ones of the same kind, are run again as if on one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SENSITIVE = (
    "test_processors.py::test_the_kernels_are_those_asked_for",
    "test_footprint.py::test_the_embedders_memory_is_what_the_allocator_gives",
    "test_footprint.py::test_the_losses_memory_is_what_the_allocator_gives",
    "test_resume.py::test_from_one_rank_to_two_to_three_to_one_the_losses_are_the_same",
    "test_loop.py::test_losses_are_the_golden_ones_of_every_method",
    "test_accumulation.py::test_every_methods_gradients_are_those_of_the_whole_batch",
    "test_exactness.py::test_gradients_equal_the_dense_float64_reference[1-dtype1]",
)
WIDE = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
LESSER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
if not WIDE:  # this processor's own kernels are those; what is below them is SSE 4.1
    LESSER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


def test_the_kernels_are_those_asked_for():
    asked = os.environ.get("ATEN_CPU_CAPABILITY")
    if asked is not None:
        assert torch.backends.cpu.get_cpu_capability() == asked.upper()


@pytest.mark.reliability(
    0, "the sensitive tests run a second time, with the kernels of a lesser processor"
)
@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="this is such a run")
@pytest.mark.parametrize("kernels", [LESSER["ONEDNN_MAX_CPU_ISA"]])
def test_sensitive_claims_hold_with_the_kernels_of_a_lesser_processor(kernels, tmp_path):
    tests = [str(ROOT / "tests" / "trainer" / test) for test in SENSITIVE]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", *tests]
    told = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'lesser'}"],
        cwd=ROOT,
        env={**os.environ, **LESSER},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert told.returncode == 0, told.stdout[-8000:] + told.stderr[-2000:]
