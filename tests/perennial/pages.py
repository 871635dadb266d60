"""Executes the Python of a page, and compares what its comments say with what comes out."""

import ast
import contextlib
import fnmatch
import io
import re
from pathlib import Path
from typing import Any


def blocks(page: Path) -> list[str]:
    """The Python blocks of a Markdown page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)


def _told(lines: list[str], node: ast.stmt) -> str | None:
    """The comment behind an expression, or behind a call of print at any depth."""
    _, _, comment = lines[(node.end_lineno or 0) - 1][node.end_col_offset :].partition("#")
    return comment.strip() or None


def _is(found: str, told: str) -> bool:
    """Whether they are the same, where ... in `told` stands for anything."""
    return fnmatch.fnmatchcase(found, re.sub(r"[\[\]?*]", r"[\g<0>]", told).replace("...", "*"))


def execute(source: str, names: dict[str, Any]) -> int:
    """Executes a block among `names`; returns how many comments were held against a value."""
    lines, held = source.splitlines(), 0
    for node in ast.parse(source).body:
        text = ast.get_source_segment(source, node) or ""
        if isinstance(node, ast.Expr) and (told := _told(lines, node)):
            found = repr(eval(text, names))
            assert _is(found, told), f"{text} is {found}, the page says {told}"
            held += 1
            continue
        printed = [
            _told(lines, one)
            for one in ast.walk(node)
            if isinstance(one, ast.Expr) and ast.unparse(one).startswith("print(")
        ]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(text, "page", "exec"), names)
        for line, told in zip(out.getvalue().splitlines(), printed, strict=True):
            assert told is None or _is(line, told), f"{line} is printed, the page says {told}"
            held += told is not None
    return held
