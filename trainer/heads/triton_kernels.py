"""Triton kernels of `softmax_kernels`: one program a sample, walking along its logits."""

# mypy: ignore-errors

import torch
import triton
import triton.language as tl

_WIDTH = 2048


@triton.jit
def _others(logits, inverse, valid, own, place, n, scaled: tl.constexpr, masked: tl.constexpr):
    """A tile of a sample's logits; -inf for its target and for what takes no part."""
    inside = place < n
    x = tl.load(logits + place, mask=inside, other=float("-inf"))
    if scaled:
        x = tl.where(inside, x * tl.load(inverse + place, mask=inside, other=1.0), x)
    if masked:
        x = tl.where(tl.load(valid + place, mask=inside, other=0) != 0, x, float("-inf"))
    return tl.where(place == own, float("-inf"), x)


@triton.jit
def _exponentials(
    logits, inverse, valid, column, top, total, n,
    tiles: tl.constexpr, scaled: tl.constexpr, masked: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits += row * n
    own = tl.load(column + row)
    largest = tl.full((), float("-inf"), tl.float32)
    summed = tl.full((), 0.0, tl.float32)
    for tile in range(tiles):
        place = tile * width + tl.arange(0, width)
        x = _others(
            logits=logits,
            inverse=inverse,
            valid=valid,
            own=own,
            place=place,
            n=n,
            scaled=scaled,
            masked=masked,
        )
        higher = tl.maximum(largest, tl.maximum(tl.max(x, 0), -3.0e38))
        summed = summed * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher), 0)
        largest = higher
    tl.store(top + row, largest)
    tl.store(total + row, summed)
    for tile in range(tiles):
        place = tile * width + tl.arange(0, width)
        x = _others(
            logits=logits,
            inverse=inverse,
            valid=valid,
            own=own,
            place=place,
            n=n,
            scaled=scaled,
            masked=masked,
        )
        tl.store(logits + place, tl.exp(x - largest), mask=place < n)


@triton.jit
def _logits_gradient(
    exponents, factor, push, inverse, column, n, scaled: tl.constexpr, width: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * width + tl.arange(0, width)
    inside = place < n
    exponents += row * n
    x = tl.load(exponents + place, mask=inside, other=0.0) * tl.load(factor + row)
    x = tl.where(place == tl.load(column + row), tl.load(push + row), x)
    if scaled:
        x *= tl.load(inverse + place, mask=inside, other=0.0)
    tl.store(exponents + place, x, mask=inside)


def triton_exponentials(
    logits: torch.Tensor,
    inverse: torch.Tensor | None,
    column: torch.Tensor,
    valid: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`softmax_kernels.exponentials` for contiguous float32 `logits`."""
    batch, n = logits.shape
    top, total = logits.new_empty(batch), logits.new_empty(batch)
    marks = logits if valid is None else valid.to(torch.int8)
    _exponentials[(batch,)](
        logits, logits if inverse is None else inverse, marks, column, top, total, n,
        tiles=triton.cdiv(n, _WIDTH), scaled=inverse is not None, masked=valid is not None,
        width=_WIDTH,
    )  # fmt: skip
    return logits, top, total


def triton_logits_gradient(
    exponents: torch.Tensor,
    factor: torch.Tensor,
    push: torch.Tensor,
    inverse: torch.Tensor | None,
    column: torch.Tensor,
) -> torch.Tensor:
    """`softmax_kernels.logits_gradient` for contiguous float32 `exponents`."""
    batch, n = exponents.shape
    _logits_gradient[(batch, triton.cdiv(n, _WIDTH))](
        exponents, factor, push, exponents if inverse is None else inverse, column, n,
        scaled=inverse is not None, width=_WIDTH,
    )  # fmt: skip
    return exponents
