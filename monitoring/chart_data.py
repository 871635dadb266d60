"""What a chart draws, as CSV inside the page: a link that works without a network or a script."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from urllib.parse import quote

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(heads: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """CSV text; numbers are written so that reading them gives the same ones. A word that a
    spreadsheet would take for a formula has an apostrophe before it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    for row in rows:
        writer.writerow([_safe(value) if isinstance(value, str) else repr(value) for value in row])
    return out.getvalue()


def _safe(word: str) -> str:
    return f"'{word}" if word.startswith(_FORMULA) else word


def figure(svg: str, name: str, heads: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """A chart with a link to its data below, a file named after `name`."""
    file = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "chart"
    data = quote(as_csv(heads, rows), safe="")
    return (
        f'<figure>{svg}<a class="data" download="{file}.csv" '
        f'href="data:text/csv;charset=utf-8,{data}" '
        f'aria-label="CSV: {escape(name)}">CSV</a></figure>'
    )
