"""The embedder's optimiser state by parameter name, whatever the ZeRO stage and the world size.

Under ZeRO 1 and 2 a rank holds a stretch of all parameters laid end to end, which may begin and end
inside a parameter. Each rank saves the pieces that it holds, each under its parameter's name and
the place where it begins there; loading puts them together and takes what the rank holds now.
Nothing is gathered, and DeepSpeed's own checkpoints, which are pickles, are not used.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainer.checkpoint.format import DamagedError

_WHOLE = "all"
"""In place of a start, for values of the whole parameter, such as Adam's count of updates."""


@dataclass(frozen=True)
class _Piece:
    """The part of a parameter that this rank's optimiser updates."""

    name: str
    parameter: torch.nn.Parameter
    held: torch.Tensor
    """The optimiser's own tensor: the parameter, or the stretch that the piece is a part of."""
    start: int
    """Where the piece begins in the flattened parameter."""
    within: slice
    """Where the piece is in the flattened `held`."""


def _pieces(engine: Any, optimizer: torch.optim.Optimizer) -> Iterator[_Piece]:
    for name, parameter in engine.module.named_parameters():
        if engine.zero_optimization_stage() == 0:
            yield _Piece(
                name=name,
                parameter=parameter,
                held=parameter,
                start=0,
                within=slice(0, parameter.numel()),
            )
            continue
        # DeepSpeed's note of where the parameter's piece lies in this rank's fp32 stretch
        mapping = parameter._hp_mapping
        if mapping is not None:  # else it is all on other ranks
            held = optimizer.param_groups[mapping.param_group_index]["params"][0]
            at = mapping.hp_fragment_address
            within = slice(at.start, at.start + at.numel)
            yield _Piece(
                name=name,
                parameter=parameter,
                held=held,
                start=mapping.lp_fragment_address.start,
                within=within,
            )


def optimizer_tensors(engine: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state that this rank holds, ``parameter.key.start`` → piece [n].

    Without ZeRO every rank holds, and returns, all of it.
    """
    tensors = {}
    for piece in _pieces(engine, optimizer):
        for key, value in optimizer.state.get(piece.held, {}).items():
            if not torch.is_tensor(value):
                continue
            if value.shape == piece.held.shape:
                tensors[f"{piece.name}.{key}.{piece.start}"] = value.flatten()[piece.within]
            else:
                tensors[f"{piece.name}.{key}.{_WHOLE}"] = value
    return tensors


def load_optimizer(
    engine: Any, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Restores the state from the `optimizer_tensors` of all ranks together.

    The embedder's weights must be restored before: ZeRO's own copies are set to them. Raises
    DamagedError when a piece is missing.
    """
    sizes = {name: p.numel() for name, p in engine.module.named_parameters()}
    saved = _put_together(tensors, sizes)
    optimizer.state.clear()
    for piece in _pieces(engine, optimizer):
        if engine.zero_optimization_stage():
            from deepspeed.utils import safe_set_full_fp32_param  # reads DS_ACCELERATOR

            safe_set_full_fp32_param(piece.parameter, piece.parameter.data)
        state = optimizer.state[piece.held] if piece.name in saved else {}
        for key, value in saved.get(piece.name, {}).items():
            if value.dim() == 0:
                state[key] = value.clone()
                continue
            if key not in state:
                state[key] = torch.zeros_like(piece.held, dtype=value.dtype)
            own = value[piece.start : piece.start + piece.within.stop - piece.within.start]
            state[key].view(-1)[piece.within].copy_(own)


def _put_together(
    tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> dict[str, dict[str, torch.Tensor]]:
    """Each parameter's state by key: whole [sizes[name]] tensors, or single numbers []."""
    whole: dict[str, dict[str, torch.Tensor]] = {}
    missing: dict[tuple[str, str], int] = {}
    for stored, value in tensors.items():
        name, key, start = [*stored.rsplit(".", 2), "", ""][:3]
        begin = int(start) if start.isascii() and start.isdecimal() else 0
        held = start == _WHOLE or (value.dim() == 1 and begin + len(value) <= sizes.get(name, -1))
        if name not in sizes or not held:
            raise DamagedError(f"the optimiser's {stored[:80]!r} is of no parameter: delete it")
        state = whole.setdefault(name, {})
        if start == _WHOLE:
            state[key] = value
            continue
        if key not in state:
            state[key] = torch.empty(sizes[name], dtype=value.dtype)
            missing[name, key] = sizes[name]
        state[key][begin : begin + len(value)] = value
        missing[name, key] -= len(value)
    for (name, key), count in missing.items():
        if count:
            raise DamagedError(
                f"{count} numbers of {key} of {name} are missing in a checkpoint: restore it from "
                "a copy, or move it away, and training goes back to the one before"
            )
    return whole
