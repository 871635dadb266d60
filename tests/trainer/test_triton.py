"""Triton's kernels compute what plain PyTorch does: on the GPU, or in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch

from trainer.heads import softmax_kernels

CASES = [(inverse, valid) for inverse in (False, True) for valid in (False, True)]


def given(scaled, masked, device):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 2500, generator=generator)  # wider, and one alone would count
    inverse = torch.rand(2500, generator=generator) + 0.5 if scaled else None
    valid = torch.rand(2500, generator=generator) > 0.3 if masked else None
    column = torch.tensor([0, 2499, -7, 2500, 2060])
    vectors = torch.rand(2, 5, generator=generator)
    return [t if t is None else t.to(device) for t in (logits, inverse, column, valid, *vectors)]


def both(scaled, masked, device):
    """Exponentials, their top and total, and the gradient, by plain PyTorch and by Triton."""
    from trainer.heads.triton_kernels import triton_exponentials, triton_logits_gradient

    out = []
    for forward, backward in (
        (softmax_kernels.exponentials, softmax_kernels.logits_gradient),
        (triton_exponentials, triton_logits_gradient),
    ):
        logits, inverse, column, valid, factor, push = given(scaled, masked, device)
        exponents, top, total = forward(logits, inverse, column, valid)
        kept = exponents.clone()
        gradient = backward(exponents, factor, push, inverse, column)
        out.append((kept, top, total, gradient))
    return out


def compare(device):
    for scaled, masked in CASES:
        for plain, kernel in zip(*both(scaled, masked, device), strict=True):
            torch.testing.assert_close(kernel, plain, rtol=1e-4, atol=1e-6)


def test_the_interpreter_computes_what_plain_pytorch_does():
    """In a process of its own: Triton decides when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = "from tests.trainer.test_triton import compare; compare('cpu')"
    done = subprocess.run(
        [sys.executable, "-c", command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_computes_what_plain_pytorch_does(monkeypatch):
    monkeypatch.setattr(softmax_kernels, "fused", lambda tensor: False)
    compare("cuda")
