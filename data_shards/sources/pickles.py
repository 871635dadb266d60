"""Reads the few pickles that image sets come as, by an interpreter that cannot run code.

A pickle is a program. This interpreter implements the instructions that build lists, tuples,
dictionaries, bytes, texts, numbers and truth values, and records what numpy's arrays are made of.
It never calls anything: the few names it allows have a fixed meaning here, all others are refused.
A restricted `pickle.Unpickler` would not do: C's can be made to allocate gigabytes by a single
instruction, and numpy's `__setstate__` would run on untrusted data.

A few bytes can describe values of any size, if each part is used twice by the next. So values are
never compared, hashed or shown as a whole: keys and names are texts, and copies are counted.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

from untrusted.text import printable

_ENCODE = ("_codecs", "encode")
_RECONSTRUCT, _SCALAR, _FROM_BUFFER = "_reconstruct", "scalar", "_frombuffer"
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
ALLOWED = frozenset(
    [
        *((module, name) for module in _MULTIARRAY for name in (_RECONSTRUCT, _SCALAR)),
        *((module, _FROM_BUFFER) for module in _NUMERIC),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        _ENCODE,
    ]
)
"""The names that a pickle may mention."""
_LONGEST_CODE, _DIMENSIONS = 16, 8
"""Characters of an element type, and of an array: more than numpy writes of pictures."""
_MARK = object()
_COPIES = 4
"""Bytes that instructions may copy, as a multiple of the file's: numpy's older format copies once.
"""


class Refused(ValueError):
    """The pickle needs something that this interpreter does not implement, on purpose."""


class Global:
    """A name that the pickle mentions."""

    def __init__(self, module: str, name: str) -> None:
        if (module, name) not in ALLOWED:
            asked = printable(f"{module[:60]}.{name[:60]}")
            raise Refused(
                f"it asks for {asked}, which could run code when it is unpickled; nothing was run"
            )
        self.module, self.name = module, name


class Dtype:
    """A numpy element type, by its code, such as u1."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str | bytes) or len(code) > _LONGEST_CODE:
            raise Refused("it names an element type by something that is no text")
        text = code.decode("latin-1") if isinstance(code, bytes) else code  # Python 2's
        self.code = text.lstrip("|<>=")


class Array:
    """The description of a numpy array."""

    def __init__(self) -> None:
        self.shape: Any = ()
        self.code = ""
        self.content: Any = b""

    def describe(self, shape: Any, dtype: Any, content: Any) -> "Array":
        """Fills it in. Raises Refused when the parts do not fit."""
        whole = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not isinstance(dtype, Dtype) or not whole or len(shape) > _DIMENSIONS:
            raise Refused("it holds a malformed array")
        if isinstance(content, bytes) and dtype.code in ("u1", "b1"):
            if math.prod(shape) != len(content):
                raise Refused("it holds an array whose size is not that of its content")
        elif not (isinstance(content, list) and dtype.code.startswith("O")):
            code = printable(dtype.code)
            raise Refused(f"it holds an array of {code}, not of bytes or truth values")
        self.shape, self.code, self.content = shape, dtype.code, content
        return self


def _call(function: Any, arguments: Any) -> Any:
    """Interprets the call of an allowed name, without calling anything. Raises Refused."""
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise Refused("it calls something that is no name")
    match function.name, arguments:
        case "_reconstruct", _:
            return Array()
        case "dtype", (code, *_):
            return Dtype(code)
        case "scalar", (Dtype() as dtype, bytes() as raw) if dtype.code[:1] in ("b", "i", "u"):
            number = int.from_bytes(raw, "little", signed=dtype.code[:1] == "i")
            return bool(number) if dtype.code == "b1" else number
        case "_frombuffer", (bytes() as raw, Dtype() as dtype, tuple() as shape, *_):
            return Array().describe(shape, dtype, raw)
        case "encode", (str() as text, "latin1" | "latin-1"):
            return text.encode("latin-1")
    raise Refused(f"it calls {function.module}.{function.name} in an unknown way")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, Dtype):
        return  # byte order and alignment, which single bytes do not have
    match state:
        case (_, shape, dtype, _, content) if isinstance(target, Array):
            target.describe(shape, dtype, content)
        case _:
            raise Refused("it sets the state of something that is no array")


class _Machine:
    """The state of the interpreter: position, stack and memo."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def bytes_of(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise ValueError("it is cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        found: int = struct.unpack(form, self.bytes_of(struct.calcsize(form)))[0]
        return found

    def line(self) -> bytes:
        end = self.data.index(b"\n", self.at)
        return self.bytes_of(end + 1 - self.at)[:-1]

    def marked(self) -> list[Any]:
        """Pops everything down to the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to something that is no list")
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise ValueError("it sets items of something that is no dictionary")
        self.stack[-1].update(_pairs(items))

    def pop(self, count: int) -> tuple[Any, ...]:
        if count > len(self.stack):
            raise ValueError("its stack is empty")
        found = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return found

    def reduce(self) -> None:
        value = _call(*self.pop(2))
        if isinstance(value, bytes):
            self.copied += len(value)
            if self.copied > _COPIES * len(self.data):
                raise Refused("it copies its content over and over")
        self.stack.append(value)

    def build(self) -> None:
        (state,) = self.pop(1)
        _build(self.stack[-1], state)

    def keep(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def stack_global(self) -> None:
        match self.pop(2):
            case str() as module, str() as name:
                self.stack.append(Global(module, name))
            case _:
                raise Refused("it asks for a name that is no text")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if not all(isinstance(key, str | bytes | int) for key in items[::2]):
        raise Refused("it holds a dictionary whose keys are no texts or numbers")
    return dict(zip(items[::2], items[1::2], strict=True))


def _integer(text: bytes) -> int | bool:
    return {b"00": False, b"01": True}.get(text, int(text.rstrip(b"L")))


def _string(text: bytes) -> bytes:
    """A Python 2 string between quotes, with escapes."""
    body = text[1:-1].decode("latin-1")
    return body.encode("latin-1").decode("unicode_escape").encode("latin-1")


_PUSH: dict[bytes, Callable[[_Machine], Any]] = {
    b"N": lambda m: None,
    b"\x88": lambda m: True,
    b"\x89": lambda m: False,
    b"]": lambda m: [],
    b")": lambda m: (),
    b"}": lambda m: {},
    b"d": lambda m: _pairs(m.marked()),
    b"(": lambda m: _MARK,
    b"I": lambda m: _integer(m.line()),
    b"L": lambda m: _integer(m.line()),
    b"J": lambda m: m.number("<i"),
    b"K": lambda m: m.number("<B"),
    b"M": lambda m: m.number("<H"),
    b"\x8a": lambda m: int.from_bytes(m.bytes_of(m.number("<B")), "little", signed=True),
    b"B": lambda m: m.bytes_of(m.number("<I")),
    b"C": lambda m: m.bytes_of(m.number("<B")),
    b"\x8e": lambda m: m.bytes_of(m.number("<Q")),
    b"\x96": lambda m: m.bytes_of(m.number("<Q")),
    b"T": lambda m: m.bytes_of(m.number("<i")),
    b"U": lambda m: m.bytes_of(m.number("<B")),
    b"S": lambda m: _string(m.line()),
    b"X": lambda m: m.bytes_of(m.number("<I")).decode(),
    b"\x8c": lambda m: m.bytes_of(m.number("<B")).decode(),
    b"V": lambda m: m.line().decode("raw_unicode_escape"),
    b"c": lambda m: Global(m.line().decode(), m.line().decode()),
    b"l": lambda m: m.marked(),
    b"t": lambda m: tuple(m.marked()),
    b"\x85": lambda m: m.pop(1),
    b"\x86": lambda m: m.pop(2),
    b"\x87": lambda m: m.pop(3),
    b"g": lambda m: m.memo[int(m.line())],
    b"h": lambda m: m.memo[m.number("<B")],
    b"j": lambda m: m.memo[m.number("<I")],
}
"""Instructions that put one value on the stack; `pickletools` documents them all."""

_DO: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.number("<B"),
    b"\x95": lambda m: m.number("<Q"),
    b"a": lambda m: m.extend(list(m.pop(1))),
    b"e": lambda m: m.extend(m.marked()),
    b"s": lambda m: m.set_items(list(m.pop(2))),
    b"u": lambda m: m.set_items(m.marked()),
    b"p": lambda m: m.keep(int(m.line())),
    b"q": lambda m: m.keep(m.number("<B")),
    b"r": lambda m: m.keep(m.number("<I")),
    b"\x94": lambda m: m.keep(len(m.memo)),
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    b"\x93": _Machine.stack_global,
}
"""All other instructions."""


def read_pickle(data: bytes) -> Any:
    """The value of a pickle of protocol 0 to 5: lists, tuples, dictionaries, bytes (Python 2's
    texts, too), texts, numbers, truth values and `Array`s.

    Raises Refused for anything that could run code, ValueError for a damaged file.
    """
    machine = _Machine(data)
    while (code := machine.bytes_of(1)) != b".":
        try:
            if push := _PUSH.get(code):
                machine.stack.append(push(machine))
            elif do := _DO.get(code):
                do(machine)
            else:
                raise Refused(f"it holds the instruction {code!r} at byte {machine.at - 1}")
        except (LookupError, OverflowError, TypeError, struct.error, UnicodeError) as error:
            raise ValueError(f"it is damaged at byte {machine.at - 1}: {error}") from error
    if len(machine.stack) != 1:
        raise ValueError("it does not end with one value")
    return machine.stack[0]
