"""Parses untrusted YAML within limits; errors are one line with the place and the remedy.

Values are built from the parser's events, not by PyYAML's loader: the C loader overflows its stack
on deep nesting and ends the process, and it reads YAML 1.1, in which `on` is true, `010` is 8 and
the second of two equal keys wins.

Scalars are those of YAML 1.2's core schema, so that `on`, `yes`, `1:30` and `2026-01-01` are texts
and `1e-3` is a number. Keys are always texts.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from untrusted.errors import InputError
from untrusted.files import read_bytes
from untrusted.text import printable
from untrusted.text_files import decoded

MOST_BYTES = 1 << 20
_DEPTH = 50
_COPIED = 10_000
"""Most values that the aliases of a text may stand for together."""
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
_DIGITS = 100
_SPECIAL = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
"""Characters that YAML forbids, line ends of YAML 1.1 only (U+0085, U+2028, U+2029), or U+FEFF."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)


def read_yaml(path: Path, within: Path | None = None, limit: int = MOST_BYTES) -> Any:
    """The value of a YAML file. Raises InputError, and OSError when it cannot be read."""
    return parse_yaml(read_bytes(path, limit, within), str(path))


def parse_yaml(content: bytes | str, name: str) -> Any:
    """The value of a YAML text of one document; None if it is empty.

    Refused are tags, directives, merge keys, repeated keys, control characters, numbers that other
    readers take for octal, integers beyond 64 bits, nesting deeper than 50 and aliases that contain
    themselves or stand for more than 10,000 values. Raises InputError naming `name` and line.
    """
    documents = yaml_documents(content, name)
    first = next(documents, None)
    if next(documents, _END) is not _END:
        raise InputError(f"{printable(name)} holds several documents (---): give one")
    return first


def yaml_documents(content: bytes | str, name: str) -> Iterator[Any]:
    """Yields every document of a text, by the rules of `parse_yaml`."""
    builder = _Builder(printable(name))
    text = content if isinstance(content, str) else decoded(content, name)
    text = text.removeprefix("\ufeff")
    if len(text) > MOST_BYTES:
        raise InputError(f"{builder.name} is larger than {MOST_BYTES:,} characters")
    if odd := _SPECIAL.search(text):
        builder.refuse(text.count("\n", 0, odd.start()), f"the character {odd[0]!a}")
    if directive := _DIRECTIVE.search(text):
        builder.refuse(text.count("\n", 0, directive.start()), "a directive (%): leave it out")
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.take(event)
            if isinstance(event, yaml.DocumentEndEvent):
                yield builder.document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = " ".join(filter(None, (error.problem, error.context)))
        builder.refuse(mark.line if mark else 0, f"this is no YAML: {printable(why)}")


_END = object()


@dataclass
class _Node:
    """A value under construction, or finished."""

    value: Any
    line: int
    anchor: str | None = None
    size: int = 1
    """Number of values in it, including itself."""
    height: int = 1
    """Depth of its nesting; 1 for a scalar."""
    key: str | None = None
    """In a mapping: the key whose value comes next."""


@dataclass
class _Builder:
    """Builds values from a parser's events, without recursion."""

    name: str
    document: Any = None
    open: list[_Node] = field(default_factory=list)
    anchors: dict[str, _Node] = field(default_factory=dict)
    copied: int = 0

    def refuse(self, line: int, why: str) -> NoReturn:
        raise InputError(f"{self.name}, line {line + 1}: {why}")

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line if event.start_mark else 0
        if isinstance(event, yaml.DocumentStartEvent):
            self.document, self.anchors = None, {}
        elif isinstance(event, yaml.CollectionEndEvent):
            self._finished(self.open.pop())
        elif isinstance(event, yaml.AliasEvent):
            self._finished(self._copy(event.anchor or "", line))
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag is not None:
                self.refuse(line, f"the tag {printable(event.tag)}: leave tags out")
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event, line)
            else:
                self._begin([] if isinstance(event, yaml.SequenceStartEvent) else {}, event, line)

    def _begin(self, empty: Any, event: yaml.CollectionStartEvent, line: int) -> None:
        if self._wants_key():
            self.refuse(line, "a list or mapping as a key: keys are texts")
        if len(self.open) >= _DEPTH:
            self.refuse(line, f"it is nested more than {_DEPTH} deep")
        self.open.append(_Node(empty, line, event.anchor))
        if event.anchor is not None:
            self.anchors[event.anchor] = self.open[-1]

    def _wants_key(self) -> bool:
        last = self.open[-1] if self.open else None
        return last is not None and isinstance(last.value, dict) and last.key is None

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        plain = event.implicit[0]  # neither quoted nor a block
        if self._wants_key():
            self._take_key(event, plain, line)
            return
        if odd := _CONTROL.search(event.value):
            self.refuse(line, f"the character {odd[0]!a} within a text")
        try:
            node = _Node(plain_value(event.value) if plain else event.value, line, event.anchor)
        except ValueError as error:
            self.refuse(line, str(error))
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        self._finished(node)

    def _take_key(self, event: yaml.ScalarEvent, plain: bool, line: int) -> None:
        key, mapping = event.value, self.open[-1]
        if plain and key == "<<":
            self.refuse(line, "a merge key (<<): write out the keys that it stands for")
        if event.anchor is not None:
            self.refuse(line, "an anchor (&) on a key: write the key out")
        if not key or printable(key) != key:
            self.refuse(line, f"'{printable(key)[:80]}' is no key: keys are texts of one line")
        if key in mapping.value:
            self.refuse(line, f"the key {key[:80]} is given twice")
        mapping.key = key

    def _copy(self, anchor: str, line: int) -> _Node:
        """A copy of an alias's value, so that changing one does not change the other."""
        if self._wants_key():
            self.refuse(line, "an alias (*) as a key: write the key out")
        meant = self.anchors.get(anchor)
        if meant is None:
            self.refuse(line, f"*{printable(anchor)} stands for nothing before it")
        if any(meant is one for one in self.open):
            self.refuse(line, f"*{printable(anchor)} holds itself")
        self.copied += meant.size
        if self.copied > _COPIED:
            self.refuse(line, f"aliases (*) stand for more than {_COPIED:,} values: write them out")
        if len(self.open) + meant.height - 1 > _DEPTH:
            self.refuse(line, f"it is nested more than {_DEPTH} deep")
        return _Node(copy.deepcopy(meant.value), line, size=meant.size, height=meant.height)

    def _finished(self, node: _Node) -> None:
        if not self.open:
            self.document = node.value
            return
        outer = self.open[-1]
        outer.size += node.size
        outer.height = max(outer.height, node.height + 1)
        if isinstance(outer.value, list):
            outer.value.append(node.value)
        else:
            outer.value[outer.key] = node.value
            outer.key = None


def plain_value(text: str) -> Any:
    """The value of an unquoted scalar in YAML 1.2. Raises ValueError with what to write instead."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _LEADING_ZERO.fullmatch(text):
        digits = text.lstrip("+-0")[:20] or "0"
        raise ValueError(
            f"{text[:20]} may mean an octal number: write {digits} or 0o{digits}, or quote a text"
        )
    if _INT.fullmatch(text):
        # by length first: converting thousands of digits is refused by Python itself
        value = int(text, 0) if len(text) <= _DIGITS else 1 << 64
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"the integer {text[:20]}... is beyond 64 bits")
        return value
    if _FLOAT.fullmatch(text):
        number = float(text) if len(text) <= _DIGITS else float("inf")
        if number in (float("inf"), -float("inf")):
            raise ValueError(f"the number {text[:20]}... is too large or too long")
        return number
    return float(text.replace(".", "")) if _NO_NUMBER.fullmatch(text) else text


def _read_as_text(text: str) -> bool:
    try:
        return isinstance(plain_value(text), str)
    except ValueError:
        return False


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 reads as something else, and writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None if _read_as_text(text) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


def dump_yaml(*documents: Any) -> str:
    """Plain values as YAML that `parse_yaml` and readers of YAML 1.1 read back unchanged."""
    given: dict[str, Any] = {"Dumper": _Dumper, "sort_keys": False, "width": 100}
    text: str = yaml.dump_all(documents, allow_unicode=True, **given)
    if printable(text, keep="\n") != text:  # invisible characters are written as escapes
        text = yaml.dump_all(documents, allow_unicode=False, **given)
    return text
