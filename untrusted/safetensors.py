"""Reads the header of untrusted safetensors, and checks the tensors' places and sizes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from safetensors import SafetensorError

from untrusted.json_text import parse_json

_LENGTH = 8
_HEADER_BYTES = 1 << 26
_SIZES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}


@dataclass(frozen=True)
class Stored:
    """The place of a tensor in a file."""

    dtype: str
    """As the format spells it, such as F32."""
    shape: tuple[int, ...]
    start: int
    """Position of its first byte in the file."""


@contextmanager
def intact() -> Iterator[None]:
    """Turns errors that a damaged file causes in the library or in our checks into a ValueError."""
    try:
        yield
    except (SafetensorError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors by name, and the metadata, of a file of `size` bytes.

    The tensors must follow each other and fill the file: overlapping ones could take any amount of
    memory. Raises ValueError, OSError.
    """
    length = int.from_bytes(file.read(_LENGTH), "little")
    if not 0 < length <= min(_HEADER_BYTES, size - _LENGTH):
        raise ValueError(f"its header of {length:,} bytes does not fit")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are not text")
    spans = {name: _span(name, facts) for name, facts in header.items()}
    end = 0
    for _, first, last in sorted(spans.values(), key=lambda span: span[1:]):
        if first != end:
            raise ValueError("its tensors do not follow each other")
        end = last
    if _LENGTH + length + end != size:
        raise ValueError(f"it has {size:,} bytes, its tensors end at {_LENGTH + length + end:,}")
    begin = _LENGTH + length
    found = {
        name: Stored(dtype, tuple(header[name]["shape"]), begin + first)
        for name, (dtype, first, _) in spans.items()
    }
    return found, metadata


def _span(name: str, facts: Any) -> tuple[str, int, int]:
    """Type, first byte and end of a tensor's bytes behind the header."""
    if not isinstance(facts, Mapping) or facts.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name[:60]!r} is not described")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise ValueError(f"tensor {name[:60]!r} is of type {str(dtype)[:20]!r}")
    if not all(isinstance(of, list) and all(map(_natural, of)) for of in (shape, offsets)):
        raise ValueError(f"tensor {name[:60]!r} has a shape or place that is no numbers")
    if len(shape) > 32 or len(offsets) != 2:
        raise ValueError(f"tensor {name[:60]!r} has a shape or place of another length")
    if offsets[1] - offsets[0] != prod(shape) * _SIZES[dtype]:
        raise ValueError(f"tensor {name[:60]!r} does not fill its place")
    return dtype, offsets[0], offsets[1]


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
